"""From rows of the inventory to model inputs: fetch, decode, window and resize.

The result is a table of PREPARED with the pixels or the error code of each slice. Storage that does
not answer raises, so that the next run reads those slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from cctmn.contract import InputContract
from cctmn.errors import SliceError
from cctmn.read.fetch import fetch
from cctmn.schema import ACQUISITION_COLUMNS
from cctmn.score import decoder as decoder_module
from cctmn.score.error_row import Row, error_row

READER_VERSION = 3  # raise it when the same bytes give other pixels, flags or codes

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
        *((column.name, column.type) for column in ACQUISITION_COLUMNS),
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
    done = {row["slice_id"]: error_row(row, row["error_code"]) for row in rows if row["error_code"]}

    def readable() -> Iterator[tuple[list[Row], bytes]]:
        for group, data in fetch([r for r in rows if not r["error_code"]], threads=threads):
            if isinstance(data, SliceError):
                done.update((row["slice_id"], error_row(row, data.code)) for row in group)
            else:
                yield group, data

    decoder = decoder_module.of_this_process()
    for prepared in decoder.decode(readable(), contract=contract, key=key):
        done.update((row["slice_id"], row) for row in prepared)
    return pa.Table.from_pylist([done[row["slice_id"]] for row in rows], schema=PREPARED)
