"""A codec that dies, hangs or takes all memory costs its own slice; its neighbours are scored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cctmn.contract import InputContract
from cctmn.score import decoder as module
from cctmn.score.decode_rows import decode_rows
from cctmn.score.decoder import Decoder
from tests.conftest import REPO
from tests.makers import png

pytestmark = pytest.mark.slow

CONTRACT = InputContract(size_px=64, max_size_px=128)
GOOD = png(1)

# What the child's Python runs at its start: pictures that end in a word harm their decoder.
POISON = """
import ctypes, time
from cctmn.read import picture

frame = picture.PictureImage.frame

def poisoned(self, index):
    for word, harm in HARMS.items():
        if self._file.getvalue().endswith(word):
            harm()
    return frame(self, index)

HARMS = {
    b"CRASH": lambda: ctypes.string_at(0),
    b"HANG": lambda: time.sleep(600),
    b"GREED": lambda: bytearray(8 << 30),
}
picture.PictureImage.frame = poisoned
"""


def group(name: str = "a", *, frames: int = 1) -> list[dict[str, Any]]:
    return [{"slice_id": f"{name}{n}", "frame": 0, "frames": 1, "flags": []} for n in range(frames)]


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "TIMEOUT_S", 10.0)
    one = Decoder()
    yield one
    one.close()


def decoded(decoder: Decoder, data: bytes, *, frames: int = 1) -> list[str]:
    rows = decoder.rows(group(frames=frames), data, contract=CONTRACT, key=b"k" * 32)
    assert [row["slice_id"] for row in rows] == [f"a{n}" for n in range(frames)]
    return [row["error_code"] for row in rows]


@pytest.mark.parametrize("word", [b"CRASH", b"GREED"])
def test_a_slice_that_kills_its_decoder_is_a_row(decoder: Decoder, word: bytes) -> None:
    assert decoded(decoder, GOOD) == [""]
    assert decoded(decoder, GOOD + word) == ["decoder_died"]
    assert decoded(decoder, GOOD) == [""]


def test_a_decoder_that_hangs_is_ended(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoded(decoder, GOOD) == [""]
    monkeypatch.setattr(module, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    assert decoded(decoder, GOOD + b"HANG") == ["decoder_died"]


def test_each_frame_dies_for_itself(decoder: Decoder) -> None:
    assert decoded(decoder, GOOD + b"CRASH", frames=3) == ["decoder_died"] * 3


def test_a_child_that_others_kill_costs_no_slice(decoder: Decoder) -> None:
    decoded(decoder, GOOD)
    assert decoder._child is not None
    child = psutil.Process(decoder._child.pid)
    child.kill()
    child.wait()
    assert decoded(decoder, GOOD) == [""]


def test_a_row_is_that_of_the_same_process(decoder: Decoder) -> None:
    [here] = [
        row
        for row in decode_rows(group(), GOOD, contract=CONTRACT, key=b"k" * 32)
        if row is not None
    ]
    [there] = decoder.rows(group(), GOOD, contract=CONTRACT, key=b"k" * 32)
    assert {k: v for k, v in there.items() if k != "t_decode_ms"} == {
        k: v for k, v in here.items() if k != "t_decode_ms"
    }


def test_the_child_ends_with_its_parent() -> None:
    script = (
        "import time; from tests.score.test_decoder import *\n"
        "d = Decoder(); decoded(d, GOOD)\n"
        "print(d._child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=30)
