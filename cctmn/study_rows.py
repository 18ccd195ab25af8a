"""The rows of OUT/predictions that studies are made of, in parts that fit in memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import rle, schema, tables
from cctmn.partition import parts_by_key

_COLUMNS: Final = (
    "slice_id",
    "study_key",
    "series_key",
    "patient_key",
    "slice_z_mm",
    "rows",
    "cols",
    "spacing_row_mm",
    "spacing_col_mm",
    "num_lesions",
    "kernel",
    "image_type",
    "flags",
    "abstained",
    "error_code",
    "model_id",
)


def read(predictions: str, *, masks: bool = True) -> tuple[tuple[str, ...], Iterator[pa.Table]]:
    """Return the image classes, and the rows of all studies in parts with whole studies each.

    The parts are in the order of their keys. Rows without a study are left out.
    """
    files = tables.sizes(predictions)
    read = tables.map_files(functools.partial(_read_file, masks=masks), files)
    first = next(read, None)
    if first is None:
        return (), iter([_columns(()).empty_table()])
    classes = schema.classes_of(first[1].schema) if masks else ()
    rows = (table for _, table in itertools.chain([first], read))
    return classes, parts_by_key(rows, "study_key")


@functools.cache
def _columns(classes: tuple[str, ...]) -> pa.Schema:
    """Return the columns of a slice that its study is made of; `area_px` is of all its lesions."""
    columns = schema.predictions(classes)
    names = [*_COLUMNS, *(f"logit_{name}" for name in classes)]
    fields = [*(columns.field(name) for name in names), pa.field("area_px", pa.float64())]
    return pa.schema(fields, metadata=columns.metadata)


def _read_file(uri: str, *, masks: bool) -> pa.Table:
    file = tables.open_whole(uri)
    held = file.schema_arrow
    classes = schema.classes_of(held) if masks else ()
    wanted = _columns(classes)
    columns = list(wanted)[:-1]
    if masks and "lesion_masks" in held.names:
        columns.append(schema.predictions(classes, masks=True).field("lesion_masks"))
    table = tables.filled(file, pa.schema(columns))
    if table["study_key"].null_count:
        table = table.filter(pc.is_valid(table["study_key"]))
    area = pa.array(_areas_px(table), pa.float64())
    arrays = [*table.columns[: len(wanted) - 1], area]
    return pa.table(arrays, schema=wanted)


def _areas_px(table: pa.Table) -> NDArray[np.float64]:
    """Return the area of each slice's lesions in px; where lesions overlap, it counts once."""
    if "lesion_masks" not in table.column_names:
        return np.full(len(table), np.nan)
    columns = (table[name].to_pylist() for name in ("lesion_masks", "rows", "cols"))
    return np.array(
        [
            rle.union_px(masks, size=(rows, cols)) if masks else 0
            for masks, rows, cols in zip(*columns, strict=True)
        ],
        np.float64,
    )
