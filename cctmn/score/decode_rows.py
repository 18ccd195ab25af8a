"""From the bytes of one object or member to its prepared rows, without storage, Arrow or Ray.

`prepare` runs this in a process of its own, because a damaged file may end the process that decodes
it. This is the one place where an unexpected failure of a single slice becomes a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from cctmn.contract import InputContract
from cctmn.errors import CctmnError, SliceError
from cctmn.pseudonym import pseudonym
from cctmn.read import decode
from cctmn.read.preprocess import ModelInput, to_input
from cctmn.read.slice import Slice
from cctmn.score.error_row import Row, error_row


def decode_rows(
    group: list[Row], data: bytes, *, contract: InputContract, key: bytes
) -> Iterator[Row | None]:
    """Yield None once the container is open, then the prepared row of each frame, in order."""
    try:
        image = decode.open_image(data)
    except Exception as error:  # noqa: BLE001 - the slice boundary
        yield None
        for row in group:
            yield error_row(row, _code(error))
        return
    yield None
    for row in group:
        start = time.perf_counter()
        try:
            if image.frames != row["frames"]:
                raise SliceError("invalid_header")  # more frames than the first look could tell
            slice_ = image.frame(row["frame"])
            ready = to_input(slice_, contract)
        except Exception as error:  # noqa: BLE001 - the slice boundary
            yield error_row(row, _code(error))
            continue
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        yield _ok(row, slice_, ready, key) | {"t_decode_ms": elapsed_ms}


def _code(error: Exception) -> str:
    if isinstance(error, CctmnError):
        raise error
    if isinstance(error, MemoryError):
        return "decoder_died"
    return error.code if isinstance(error, SliceError) else "decode_error"


def _ok(row: Row, slice_: Slice, ready: ModelInput, key: bytes) -> Row:
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
        **vars(slice_.acquisition),
        "flags": sorted({*row["flags"], *ready.flags}),
        "error_code": "",
        "pixels": ready.pixels.tobytes(),
        "input_rows": ready.pixels.shape[0],
        "input_cols": ready.pixels.shape[1],
        "to_stored": ready.to_stored.to_list(),
    }
