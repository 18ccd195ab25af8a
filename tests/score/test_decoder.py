"""A codec that dies, hangs or takes all memory costs its own slice; its neighbours are scored."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from cctmn.contract import InputContract
from cctmn.errors import StoreError
from cctmn.score import decoder as module
from cctmn.score.decode_rows import decode_rows
from cctmn.score.decoder import Decoder
from tests.conftest import REPO
from tests.makers import png

pytestmark = pytest.mark.slow

CONTRACT = InputContract(size_px=64, max_size_px=128)
KEY = b"k" * 32
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


def pid_of(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


def decoded(decoder: Decoder, *objects: bytes, frames: int = 1) -> list[str]:
    names = [chr(ord("a") + number) for number in range(len(objects))]
    groups = [group(name, frames=frames) for name in names]
    rows = decoder.decode(zip(groups, objects, strict=True), contract=CONTRACT, key=KEY)
    codes = []
    for asked, got in zip(groups, rows, strict=True):
        assert [row["slice_id"] for row in got] == [row["slice_id"] for row in asked]
        codes += [row["error_code"] for row in got]
    return codes


@pytest.mark.parametrize("word", [b"CRASH", b"GREED"])
def test_a_slice_that_kills_its_decoder_is_a_row(decoder: Decoder, word: bytes) -> None:
    objects = (GOOD, GOOD + word, GOOD, GOOD + word, GOOD + word, GOOD)
    died = "decoder_died"
    assert decoded(decoder, *objects) == ["", died, "", died, died, ""]
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
    child = psutil.Process(pid_of(decoder))
    child.kill()
    child.wait()
    assert decoded(decoder, GOOD, GOOD) == ["", ""]


def test_the_child_has_the_next_object_while_it_decodes_one(decoder: Decoder) -> None:
    taken = []

    def objects() -> Iterator[tuple[list[dict[str, Any]], bytes]]:
        for name in "abc":
            taken.append(name)
            yield group(name), GOOD

    rows = decoder.decode(objects(), contract=CONTRACT, key=KEY)
    assert [row["slice_id"] for row in next(rows)] == ["a0"]
    assert taken == ["a", "b"]
    assert [row["slice_id"] for got in rows for row in got] == ["b0", "c0"]


def test_objects_and_replies_that_no_pipe_holds(decoder: Decoder) -> None:
    contract = InputContract(size_px=1600, max_size_px=1600)
    noise = np.random.default_rng(1).integers(0, 256, (1600, 1600), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "TIFF")
    large = buffer.getvalue()
    assert len(large) > 2 * module.PIPE_BYTES
    objects = [(group(name), large) for name in "abcd"]
    got = [row for rows in decoder.decode(objects, contract=contract, key=KEY) for row in rows]
    assert [row["slice_id"] for row in got] == ["a0", "b0", "c0", "d0"]
    assert {row["pixels"] for row in got} == {noise.tobytes()}


def test_objects_that_cannot_be_read_leave_no_reply_behind(decoder: Decoder) -> None:
    def objects() -> Iterator[tuple[list[dict[str, Any]], bytes]]:
        yield group("a"), GOOD
        yield group("b"), GOOD
        raise StoreError("the storage does not answer", "file:///x")

    rows = decoder.decode(objects(), contract=CONTRACT, key=KEY)
    assert [row["slice_id"] for row in next(rows)] == ["a0"]
    with pytest.raises(StoreError):
        next(rows)
    assert decoded(decoder, GOOD, GOOD) == ["", ""]


def test_a_row_is_that_of_the_same_process(decoder: Decoder) -> None:
    [here] = [
        row for row in decode_rows(group(), GOOD, contract=CONTRACT, key=KEY) if row is not None
    ]
    [[there]] = decoder.decode([(group(), GOOD)], contract=CONTRACT, key=KEY)
    assert {k: v for k, v in there.items() if k != "t_decode_ms"} == {
        k: v for k, v in here.items() if k != "t_decode_ms"
    }


def test_the_child_ends_with_its_parent() -> None:
    script = (
        "import time; from tests.score.test_decoder import *\n"
        "d = Decoder(); decoded(d, GOOD)\n"
        "print(pid_of(d), flush=True); time.sleep(600)"
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
