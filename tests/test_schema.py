"""The documented columns, and the classes that a table of predictions carries."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cctmn import schema

CLASSES = ("control", "covid")
EVERY_COLUMN = [
    *schema.INVENTORY_COLUMNS,
    *schema.LESION_COLUMNS,
    *schema.LABELS_COLUMNS,
    *schema.prediction_columns(CLASSES, ranked_boxes=True, masks=True),
    *schema.study_columns(CLASSES),
]


@pytest.mark.parametrize("classes", [CLASSES, ()])
def test_classes_come_from_the_metadata(classes: tuple[str, ...]) -> None:
    assert schema.classes_of(schema.predictions(classes)) == classes


def test_classes_of_older_files_come_from_their_columns() -> None:
    older = schema.predictions(CLASSES).remove_metadata()
    assert schema.classes_of(older) == CLASSES
    assert schema.classes_of(pa.schema([("slice_id", pa.string())])) == ()


def test_every_column_and_flag_is_documented() -> None:
    undocumented = [column.name for column in EVERY_COLUMN if not column.doc.endswith(".")]
    undocumented += [flag for flag, text in schema.FLAGS.items() if not text.endswith(".")]
    assert not undocumented
    assert schema.FLAGS.keys() >= schema.ABSTAIN_FLAGS
