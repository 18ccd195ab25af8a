"""One row per study: which series, which class, and how much lesion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import rle, schema, store, studies
from cctmn.metrics.patients import PatientRule

CLASSES = ("control", "pneumonia", "covid")
RULE = studies.StudyRule("softmax")
SIDE = 64  # px
PIXEL_MM = 2.0


def a_slice(
    study: str | None, series: str | None, z: float | None, **values: Any
) -> dict[str, Any]:
    """A clean scored slice; `sick` is the index of the class that it shows, `px` its lesion."""
    sick, px = values.pop("sick", 0), values.pop("px", None)
    row: dict[str, Any] = {"study_key": study, "series_key": series, "slice_z_mm": z, "frame": 0}
    row |= {"patient_key": "anna", "rows": SIDE, "cols": SIDE, "num_lesions": int(sick > 0)}
    row |= {"spacing_row_mm": PIXEL_MM, "spacing_col_mm": PIXEL_MM, "flags": [], "abstained": False}
    row |= {"error_code": "", "model_id": "m", "lesions": [], "lesion_masks": []}
    row |= {f"logit_{name}": 5.0 * (i == sick) for i, name in enumerate(CLASSES)}
    if px:
        mask = np.zeros(SIDE * SIDE, np.uint8)
        mask[: int(px)] = 1
        row["lesion_masks"] = [m["counts"] for m in rle.encode([mask.reshape(SIDE, SIDE)])]
    return row | values


def table_of(
    folder: Path, rows: list[dict[str, Any]], *, masks: bool = False, rule: Any = RULE
) -> dict[str, dict[str, Any]]:
    """Write the rows as two files of predictions, and return the row of each study."""
    (folder / "predictions").mkdir(parents=True)
    for i, row in enumerate(rows):
        row.setdefault("slice_id", f"{i:032x}")
    # The rows of a study are not together in the files of a run.
    for number in range(2):
        part = pa.Table.from_pylist(rows[number::2], schema.predictions(CLASSES, masks=masks))
        pq.write_table(part, folder / f"predictions/{number}.parquet")
    out = store.to_uri(str(folder))
    returned = studies.write(out, rule=rule)
    table = pq.read_table(folder / "studies/studies.parquet")
    assert table.schema.equals(schema.studies(CLASSES))
    assert table.equals(returned)
    return {row["study_key"]: row for row in table.to_pylist()}


def scan(study: str, series: str, distance: float, n: int, **values: Any) -> list[dict[str, Any]]:
    return [a_slice(study, series, i * distance, **values) for i in range(n)]


def test_a_few_sick_slices_make_a_study_sick_and_are_named(tmp_path: Path) -> None:
    rows = scan("a", "s", 5.0, 40) + scan("b", "t", 5.0, 40)
    for row in rows[10:16]:
        row |= a_slice("a", "s", row["slice_z_mm"], sick=2)
    made = table_of(tmp_path, rows)
    sick, clean = made["a"], made["b"]
    assert (sick["pred_class"], clean["pred_class"]) == ("covid", "control")
    assert sick["p_covid"] > 0.9 > 0.1 > clean["p_covid"]
    assert sum(sick[f"p_{name}"] for name in CLASSES) == pytest.approx(1)
    assert set(sick["deciding_slices"]) < {f"{i:032x}" for i in range(10, 16)}
    assert len(sick["deciding_slices"]) == RULE.patients.top_m
    assert (sick["num_slices"], sick["num_used"], sick["num_lesions"]) == (40, 40, 6)
    assert sick["slice_distance_mm"] == 5
    assert sick["patient_studies"] == 2


def test_two_reconstructions_give_one_answer_of_one_of_them(tmp_path: Path) -> None:
    thick, thin = scan("a", "thick", 5.0, 40, sick=2), scan("a", "thin", 1.5, 133)
    (made,) = table_of(tmp_path, thick + thin).values()
    assert (made["series_key"], made["series_reason"]) == ("thin", "thinnest")
    assert made["pred_class"] == "control"
    assert (made["num_series"], made["num_slices"], made["num_used"]) == (2, 173, 133)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"distance": 5.0, "n": 40}, {"distance": 1.0, "n": 10}, "whole_scan"),
        ({"distance": 0.9, "n": 90}, {"distance": 0.7, "n": 110}, "most_slices"),
        ({"distance": 5.0, "n": 40}, {"distance": 1.0, "n": 200, "flags": ["derived"]}, "original"),
        (
            {"distance": 5.0, "n": 40, "image_type": "ORIGINAL\\PRIMARY\\AXIAL"},
            {"distance": 1.0, "n": 200, "image_type": "DERIVED\\PRIMARY\\AXIAL"},
            "original",
        ),
        ({"distance": 1.0, "n": 40}, {"distance": 2.0, "n": 20, "kernel": "B70F"}, "thinnest"),
        (
            {"distance": 1.0, "n": 80, "kernel": "FC52"},
            {"distance": 0.7, "n": 120, "kernel": "FC18"},
            "lung_kernel",
        ),
        ({"distance": 5.0, "n": 40}, {"distance": 1.0, "n": 9, "abstained": True}, "only_series"),
        ({"distance": 5.0, "n": 40}, {"distance": 5.0, "n": 40}, "first_key"),
    ],
)
def test_the_reason_for_a_series_is_the_rule_that_decided(
    first: dict[str, Any], second: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rows = scan("a", "first", **first) + scan("a", "second", **second)
    (made,) = table_of(tmp_path, rows).values()
    expected = "second" if reason == "most_slices" else "first"
    assert (made["series_key"], made["series_reason"]) == (expected, reason)


def test_predictions_of_an_older_version_have_studies(tmp_path: Path) -> None:
    columns = schema.predictions(CLASSES)
    old = [n for n in columns.names if n not in {c.name for c in schema.ACQUISITION_COLUMNS}]
    (tmp_path / "predictions").mkdir()
    for number, names in enumerate((old, columns.names)):
        rows = [row | {"slice_id": f"{number}{i}"} for i, row in enumerate(scan("a", "s", 5.0, 9))]
        table = pa.Table.from_pylist(rows, columns).select(names)
        pq.write_table(table, tmp_path / f"predictions/{number}.parquet")
    assert studies.write(store.to_uri(str(tmp_path)), rule=RULE)["num_used"].to_pylist() == [18]


def test_errors_and_abstained_slices_decide_nothing_and_are_counted(tmp_path: Path) -> None:
    error = {"error_code": "corrupt_pixels", "flags": None, "abstained": False}
    error |= {f"logit_{name}": None for name in CLASSES}
    rows = scan("a", "s", 5.0, 20) + scan("b", "t", 5.0, 4, **error)
    rows += scan("a", "s", 6.0, 7, sick=2, abstained=True, flags=["window"])
    rows += [a_slice("a", "scout", None, **error | {"error_code": "localizer"})]
    rows += [a_slice(None, None, None, sick=2)]
    made = table_of(tmp_path, rows)
    assert made.keys() == {"a", "b"}
    a, b = made["a"], made["b"]
    assert a["pred_class"] == "control"
    assert (a["num_slices"], a["num_abstained"], a["num_used"]) == (27, 7, 20)
    assert (a["num_passed_over"], a["num_series"], a["flags"]) == (1, 1, ["window"])
    assert (b["num_slices"], b["num_errors"], b["num_used"]) == (4, 4, 0)
    assert b["series_key"] is b["series_reason"] is b["pred_class"] is b["p_covid"] is None
    assert b["deciding_slices"] == []


def test_the_rule_of_the_card_decides(tmp_path: Path) -> None:
    rows = scan("a", "s", 5.0, 20)
    never_clean = studies.StudyRule("softmax", patients=PatientRule(3, 20.0, 1.0))
    (made,) = table_of(tmp_path, rows, rule=never_clean).values()
    assert made["pred_class"] != "control"
    assert len(made["deciding_slices"]) == 3


def sphere_px(z: float, radius_mm: float) -> float:
    return float(np.pi * max(0.0, radius_mm**2 - z**2) / PIXEL_MM**2)


@pytest.mark.parametrize("spacing", ["even", "uneven", "overlapping", "repeated"])
def test_the_volume_of_a_sphere_is_right_at_any_spacing(spacing: str, tmp_path: Path) -> None:
    """Overlapping slices are 5 mm thick and 2.5 mm apart, which only their positions tell."""
    z = {
        "even": np.arange(-60, 61, 5.0),
        "uneven": np.concatenate([np.arange(-60, 0, 8.0), np.arange(0, 61, 3.0)]),
        "overlapping": np.arange(-60, 61, 2.5),
        "repeated": np.repeat(np.arange(-60, 61, 5.0), 2),
    }[spacing]
    rows = [a_slice("a", "s", float(one), sick=2, px=sphere_px(one, 30)) for one in z]
    (made,) = table_of(tmp_path, rows, masks=True).values()
    assert made["lesion_volume_ml"] == pytest.approx(4 / 3 * np.pi * 30**3 / 1000, rel=0.02)
    assert made["lesion_area_mm2"] == pytest.approx(np.pi * 30**2, rel=0.01)


def test_nothing_is_said_about_a_large_gap() -> None:
    area, z = np.full(20, 100.0), np.concatenate([np.arange(10) * 5.0, 200 + np.arange(10) * 5.0])
    assert studies.volume_ml(area, z) == pytest.approx(20 * 5 * 100 / 1000)
    # A single slice that is missing is bridged.
    assert studies.volume_ml(np.full(9, 100.0), np.delete(z[:10], 5)) == pytest.approx(5.0)


def test_lesions_that_overlap_count_once(tmp_path: Path) -> None:
    rows = scan("a", "s", 5.0, 3, sick=2, px=100)
    for row in rows:
        row["lesion_masks"] = row["lesion_masks"] * 2
    (made,) = table_of(tmp_path, rows, masks=True).values()
    assert made["lesion_area_mm2"] == 100 * PIXEL_MM**2


def test_without_masks_or_positions_there_is_no_volume(tmp_path: Path) -> None:
    (made,) = table_of(tmp_path / "1", scan("a", "s", 5.0, 5)).values()
    assert made["lesion_volume_ml"] is made["lesion_area_mm2"] is None
    rows = [a_slice("a", "s", None, sick=2, px=50) for _ in range(5)]
    (made,) = table_of(tmp_path / "2", rows, masks=True).values()
    assert made["lesion_volume_ml"] is None
    assert made["lesion_area_mm2"] == 50 * PIXEL_MM**2


def test_an_archive_of_pictures_has_no_studies(tmp_path: Path) -> None:
    assert table_of(tmp_path, [a_slice(None, None, None) for _ in range(3)]) == {}


def test_studies_do_not_depend_on_how_many_rows_are_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        row
        for study in range(40)
        for row in scan(f"{study * 37 % 256:02x}", "s", 2.0, 5, sick=study % 3)
    ]
    whole = table_of(tmp_path / "a", rows)
    monkeypatch.setattr("cctmn.partition.ROWS_IN_MEMORY", 30)
    assert table_of(tmp_path / "b", rows) == whole
    assert whole["00"]["patient_studies"] == 40
