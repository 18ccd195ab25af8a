"""From the bytes of an object to rows: an unexpected failure is the row of its slice alone."""

from __future__ import annotations

from typing import Any

import pytest

from cctmn.contract import InputContract
from cctmn.errors import StoreError
from cctmn.read.preprocess import to_input
from cctmn.score import decode_rows as module
from cctmn.score.decode_rows import decode_rows
from tests.makers import png

CONTRACT = InputContract(size_px=64, max_size_px=128)
ROWS = [{"slice_id": str(n), "frame": 0, "frames": 1, "flags": []} for n in range(2)]


def codes(data: bytes) -> list[str]:
    opened, *rows = decode_rows(ROWS, data, contract=CONTRACT, key=b"k" * 32)
    assert opened is None
    return [row["error_code"] for row in rows if row is not None]


@pytest.mark.parametrize(
    ("error", "code"), [(ZeroDivisionError, "decode_error"), (MemoryError, "decoder_died")]
)
def test_a_failure_is_the_row_of_its_slice(
    error: type[Exception], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails_once(slice_: Any, contract: InputContract) -> Any:
        calls.append(slice_)
        if len(calls) == 1:
            raise error
        return to_input(slice_, contract)

    monkeypatch.setattr(module, "to_input", fails_once)
    assert codes(png(1)) == [code, ""]


def test_a_container_that_cannot_be_opened_is_the_row_of_each_frame() -> None:
    assert codes(png(1)[:-100]) == ["truncated", "truncated"]


def test_storage_that_does_not_answer_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_image(data: bytes) -> Any:
        raise StoreError("it does not answer; run it again")

    monkeypatch.setattr(module.decode, "open_image", open_image)
    with pytest.raises(StoreError, match="it does not answer"):
        codes(png(1))
