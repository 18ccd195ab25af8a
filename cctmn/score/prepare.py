"""From rows of the inventory to model inputs: fetch, decode, window and resize.

The result is a table of PREPARED with the pixels or the error code of each slice. This is the one
place where an unexpected failure of a single slice becomes a row. Storage that does not answer
still raises, so that the next run reads those slices.
"""

from __future__ import annotations

import time
from typing import Any, Final

import pyarrow as pa

from cctmn.contract import InputContract
from cctmn.errors import CctmnError, SliceError
from cctmn.pseudonym import pseudonym
from cctmn.read import decode
from cctmn.read.fetch import fetch
from cctmn.read.preprocess import ModelInput, to_input
from cctmn.read.slice import Slice

READER_VERSION = 1  # raise it when the same bytes give other pixels, flags or codes

PREPARED: Final = pa.schema(
    [
        ("slice_id", pa.string()),
        ("frame", pa.int32()),
        ("study_key", pa.string()),
        ("series_key", pa.string()),
        ("patient_key", pa.string()),
        ("slice_z_mm", pa.float32()),
        ("rows", pa.int32()),
        ("cols", pa.int32()),
        ("spacing_row_mm", pa.float32()),
        ("spacing_col_mm", pa.float32()),
        ("flags", pa.list_(pa.string())),
        ("error_code", pa.string()),
        ("t_decode_ms", pa.float32()),
        ("pixels", pa.binary()),  # uint8, input_rows x input_cols; empty with an error code
        ("input_rows", pa.int32()),
        ("input_cols", pa.int32()),
        ("to_stored", pa.list_(pa.float32())),  # 2 x 3, row by row: model px -> stored px
    ]
)


def prepare(table: pa.Table, *, contract: InputContract, key: bytes, threads: int) -> pa.Table:
    """Return one prepared row per inventory row, in the same order."""
    rows = table.to_pylist()
    done = {row["slice_id"]: _error(row, row["error_code"]) for row in rows if row["error_code"]}
    for group, data in fetch([r for r in rows if not r["error_code"]], threads=threads):
        for row, prepared in zip(group, _group(group, data, contract, key), strict=True):
            done[row["slice_id"]] = prepared
    return pa.Table.from_pylist([done[row["slice_id"]] for row in rows], schema=PREPARED)


def _group(
    group: list[dict[str, Any]], data: bytes | SliceError, contract: InputContract, key: bytes
) -> list[dict[str, Any]]:
    """Prepare the slices of one object or member."""
    if isinstance(data, SliceError):
        return [_error(row, data.code) for row in group]
    try:
        image = decode.open_image(data)
    except Exception as error:  # noqa: BLE001 - the slice boundary
        return [_error(row, _code(error)) for row in group]
    prepared = []
    for row in group:
        start = time.perf_counter()
        try:
            if image.frames != row["frames"]:
                raise SliceError("invalid_header")  # more frames than the first look could tell
            slice_ = image.frame(row["frame"])
            ready = to_input(slice_, contract)
        except Exception as error:  # noqa: BLE001 - the slice boundary
            prepared.append(_error(row, _code(error)))
            continue
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        prepared.append(_ok(row, slice_, ready, key) | {"t_decode_ms": elapsed_ms})
    return prepared


def _code(error: Exception) -> str:
    if isinstance(error, CctmnError):
        raise error
    return error.code if isinstance(error, SliceError) else "decode_error"


def _error(row: dict[str, Any], code: str) -> dict[str, Any]:
    return {
        "slice_id": row["slice_id"],
        "frame": row["frame"],
        "flags": row["flags"],
        "error_code": code,
        "t_decode_ms": 0.0,
        "pixels": b"",
        "input_rows": 0,
        "input_cols": 0,
        "to_stored": [],
    }


def _ok(row: dict[str, Any], slice_: Slice, ready: ModelInput, key: bytes) -> dict[str, Any]:
    """Build the row of a slice: measures, and keyed pseudonyms in place of identifiers."""

    def keyed(domain: str, value: str | None) -> str | None:
        return pseudonym(key, domain, value) if value else None

    return {
        "slice_id": row["slice_id"],
        "frame": row["frame"],
        "study_key": keyed("study", slice_.study_uid),
        "series_key": keyed("series", slice_.series_uid),
        "patient_key": keyed("patient", slice_.patient_id),
        "slice_z_mm": slice_.slice_z_mm,
        "rows": slice_.rows,
        "cols": slice_.cols,
        "spacing_row_mm": slice_.spacing_row_mm,
        "spacing_col_mm": slice_.spacing_col_mm,
        "flags": sorted({*row["flags"], *ready.flags}),
        "error_code": "",
        "pixels": ready.pixels.tobytes(),
        "input_rows": ready.pixels.shape[0],
        "input_cols": ready.pixels.shape[1],
        "to_stored": ready.to_stored.to_list(),
    }
