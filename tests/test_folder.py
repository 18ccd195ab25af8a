"""Rules of an output folder on disk, without Ray: one writer, private files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cctmn import folder, store
from cctmn.errors import ResumeError, StoreError

HOLD = (
    "import sys, time\n"
    "from cctmn import folder\n"
    "with folder.only_writer(sys.argv[1]): print('held', flush=True); time.sleep(60)\n"
)


def test_a_second_writer_is_refused_and_the_first_named(tmp_path: Path) -> None:
    out = tmp_path.as_uri()
    with (
        folder.only_writer(out),
        pytest.raises(ResumeError, match=rf"{tmp_path}: process {os.getpid()} is writing here; "),
    ):
        folder.only_writer(out).__enter__()
    with folder.only_writer(out):
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    out = tmp_path.as_uri()
    process = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ResumeError, match=f"process {process.pid} is writing here"):
        folder.only_writer(out).__enter__()
    process.kill()
    process.wait()
    process.stdout.close()
    with folder.only_writer(out):
        assert (tmp_path / "private" / "lock").read_text() == str(os.getpid())


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder.only_writer(tmp_path.as_uri()):
        raise KeyError
    with folder.only_writer(tmp_path.as_uri()):
        pass


def test_the_private_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    out = (tmp_path / "deep" / "out").as_uri()
    with folder.only_writer(out):
        folder.put_json(f"{out}/private/run.json", {"b": 1, "a": [2]})
        folder.put_json(f"{out}/manifest.json", {})
    private = tmp_path / "deep" / "out" / "private"
    assert private.stat().st_mode & 0o777 == 0o700
    assert (private / "lock").stat().st_mode & 0o777 == 0o600
    assert (private / "run.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((private / "run.json").read_text()) == {"a": [2], "b": 1}
    assert store.read_all(f"{out}/manifest.json") == b"{}\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"private: cannot be written \(.*\); check OUT"):
        folder.only_writer((tmp_path / "file" / "out").as_uri()).__enter__()
