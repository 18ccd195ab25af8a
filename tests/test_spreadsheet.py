"""The results as one table: rows, types, names and what a spreadsheet must not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from cctmn import schema, spreadsheet, store, studies
from tests.commands import call, one_line
from tests.conftest import S3Server
from tests.evaluate.outputs import write_output

# Five slices: two studies of anna, one of a patient without key, and a picture without a header.
FILES = ("=cmd().dcm", "b.dcm", "c.dcm", "d.dcm", "e.png")
STUDIES = ("s1", "s1", "s2", "s3", None)
COVID = (0.1, 0.0, 6.0, 3.0, 1.0)
COLUMNS = {
    "study_key": STUDIES,
    "patient_key": ("anna", "anna", "anna", None, None),
    "flags": (["lossy", "small"], [], [], [], ["window"]),
    "abstained": (False, False, False, False, True),
    "slice_z_mm": (0.1, 5.0, 0.0, 0.0, None),
    "max_lesion_score": (0.9, float("nan"), 0.5, None, 0.5),
}
TEXTS = {"slice_id", "study_key", "patient_key", "pred_class", "flags", "error_code", "model_id"}


def write_results(out: Path, **options: Any) -> Path:
    logits = np.array([(5 - p, 0, p) for p in COVID])
    write_output(out, FILES, logits, columns=COLUMNS, **options)
    studies.write(store.to_uri(str(out)), rule=studies.StudyRule("softmax"))
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("table") / "out", errors={"b.dcm": "corrupt"})


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a table of any kind back; an empty cell is None."""
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".csv":
        return list(pacsv.read_csv(path).to_pylist())
    lines = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    header = next(lines)
    return [dict(zip(header, line, strict=True)) for line in lines]


def made(out: Path, to: Path, *options: str) -> list[dict[str, Any]]:
    done = call("table", out, "-o", to, *options)
    assert done.returncode == 0, done.stderr
    return rows_of(to)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
@pytest.mark.parametrize(("by", "rows"), [("slice", 5), ("study", 3), ("patient", 2)])
def test_each_kind_of_row_in_each_format(
    by: str, rows: int, suffix: str, out: Path, tmp_path: Path
) -> None:
    done = call("table", out, "--by", by, "-o", tmp_path / f"x{suffix}")
    assert done.returncode == 0
    assert f"{rows} " in done.stderr
    table = rows_of(tmp_path / f"x{suffix}")
    assert len(table) == rows
    assert not any(isinstance(value, list | dict) for row in table for value in row.values())


@pytest.mark.parametrize("older", ["first", "last"])
def test_a_folder_that_two_versions_wrote_is_one_table(older: str, tmp_path: Path) -> None:
    out = write_results(tmp_path / "out")
    [whole] = (out / "predictions").iterdir()
    table = pq.read_table(whole)
    lacking = table.drop_columns([column.name for column in schema.ACQUISITION_COLUMNS])
    pq.write_table(lacking, out / f"predictions/{'a' if older == 'first' else 'z'}.parquet")
    rows = made(out, tmp_path / "x.csv", "--by", "slice")
    assert len(rows) == 2 * len(FILES)
    assert {row["kernel"] for row in rows} <= {None, ""}


def test_cells_of_a_sheet_have_the_types_of_their_columns(out: Path, tmp_path: Path) -> None:
    first, error, *_, picture = made(out, tmp_path / "x.xlsx", "--by", "slice")
    assert (first["slice_z_mm"], first["rows"], first["abstained"]) == (0.1, 64, False)
    assert isinstance(first["logit_covid"], float)
    assert first["flags"] == "lossy;small"
    assert (picture["abstained"], picture["study_key"], picture["slice_z_mm"]) == (True, None, None)
    assert (error["error_code"], error["logit_covid"]) == ("corrupt", None)
    assert {"lesions", "lesion_masks"}.isdisjoint(first)


def test_ids_of_digits_stay_texts_in_a_sheet(out: Path, tmp_path: Path) -> None:
    ids = [row["slice_id"] for row in made(out, tmp_path / "x.xlsx", "--by", "slice")]
    assert ids[1] == f"{1:032x}"


def test_a_value_that_is_not_a_number_is_an_empty_cell(tmp_path: Path) -> None:
    out = write_results(tmp_path / "out")
    for suffix in (".xlsx", ".csv"):
        row = made(out, tmp_path / f"x{suffix}", "--by", "slice")[1]
        assert row["max_lesion_score"] is None


def test_the_likeliest_sick_study_decides_about_a_patient(out: Path, tmp_path: Path) -> None:
    anna, nameless = made(out, tmp_path / "x.parquet", "--by", "patient")
    s1, s2, s3 = made(out, tmp_path / "y.parquet", "--by", "study")
    assert (anna["patient_key"], anna["study_key"], anna["pred_class"]) == ("anna", "s2", "covid")
    assert (anna["num_studies"], anna["study_keys"]) == (2, "s1;s2")
    assert anna["p_covid"] == s2["p_covid"] > s1["p_covid"]
    assert (anna["num_slices"], anna["num_errors"], anna["num_used"]) == (2, 0, 1)
    assert (nameless["patient_key"], nameless["study_keys"]) == (None, "s3")
    assert nameless["p_covid"] == s3["p_covid"]


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_names_are_written_on_demand_and_for_the_owner_alone(
    suffix: str, out: Path, tmp_path: Path
) -> None:
    to = tmp_path / f"x{suffix}"
    to.write_text("an older file, for everybody")
    for by in ("slice", "study", "patient"):
        rows = made(out, to, "--by", by, "--names")
        assert any(row["uri"].endswith("/images/c.dcm") for row in rows if row["uri"])
        assert to.stat().st_mode & 0o777 == 0o600
    plain = made(out, to, "--by", "slice")
    assert not any("images" in str(value) for row in plain for value in row.values())


def test_a_study_is_named_by_the_slice_that_decides_most(out: Path, tmp_path: Path) -> None:
    rows = made(out, tmp_path / "x.csv", "--names")
    assert [row["uri"].rsplit("/", 1)[1] for row in rows] == ["=cmd().dcm", "c.dcm", "d.dcm"]


def test_a_name_that_looks_like_a_formula_is_not_run(tmp_path: Path) -> None:
    out = write_results(tmp_path / "out")
    file = out / "private/inventory/g000000-000000.parquet"
    table = pq.read_table(file)
    names = pa.array(['=HYPERLINK("http://x")', "#N/A", "+1", "a\x1b[2Jb", "007"])
    pq.write_table(table.set_column(table.column_names.index("member"), "member", names), file)
    members = [row["member"] for row in made(out, tmp_path / "x.csv", "--by", "slice", "--names")]
    assert [str(name)[0] for name in members[:3]] == ["'", "#", "'"]
    made(out, tmp_path / "x.xlsx", "--by", "slice", "--names")
    sheet = openpyxl.load_workbook(tmp_path / "x.xlsx").active
    cells = [sheet.cell(row, 3) for row in range(2, 7)]
    assert {cell.data_type for cell in cells} == {"s"}
    assert [cell.value for cell in cells] == [
        '=HYPERLINK("http://x")',
        "#N/A",
        "+1",
        r"a\x1b[2Jb",
        "007",
    ]


def test_a_sheet_that_is_too_long_is_refused_and_nothing_is_written(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreadsheet, "XLSX_LINES", 3)
    for by in ("slice", "study"):
        done = call("table", out, "--by", by, "-o", tmp_path / "x.xlsx")
        one_line(done, code=2, message="more rows than the 2 of an xlsx file; write .csv")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_on_s3_and_a_table_on_s3(out: Path, tmp_path: Path, s3: S3Server) -> None:
    s3.bucket("table")
    for path in (path for path in out.rglob("*") if path.is_file()):
        s3.upload("table", f"out/{path.relative_to(out)}", path.read_bytes())
    for suffix in (".csv", ".xlsx", ".parquet"):
        done = call("table", "s3://table/out", "--names", "-o", f"s3://table/x{suffix}")
        assert done.returncode == 0, done.stderr
        (tmp_path / f"x{suffix}").write_bytes(store.read_all(f"s3://table/x{suffix}"))
        assert rows_of(tmp_path / f"x{suffix}") == made(out, tmp_path / f"y{suffix}", "--names")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "x.ods"], "-o x.ods: not a table; give a file ending in .csv, .xlsx, .parquet"),
        (["--names", "-o", "{out}/x.csv"], "write to OUT/private or outside OUT"),
        (["-o", "{out}/studies/x.parquet"], "is for what `cctmn score` writes"),
    ],
)
def test_a_target_that_cannot_be_is_refused(options: list[str], message: str, out: Path) -> None:
    done = call("table", out, *(word.format(out=out) for word in options))
    one_line(done, code=2, message=message)


def test_names_may_be_written_into_private(out: Path) -> None:
    assert made(out, out / "private/names.csv", "--names")


@pytest.mark.parametrize(
    ("removed", "options", "message"),
    [
        ("predictions", [], "holds no predictions; score into it first"),
        ("studies", [], "holds no studies; run the same `cctmn score` again"),
        ("private/inventory", ["--names"], "no private/inventory, which has the names"),
    ],
)
def test_what_is_missing_in_an_output_folder_is_one_line(
    removed: str, options: list[str], message: str, tmp_path: Path
) -> None:
    out = write_results(tmp_path / "out")
    for folder in {removed, "studies"} if removed == "predictions" else {removed}:
        for path in (out / folder).iterdir():
            path.unlink()
    done = call("table", out, "-o", tmp_path / "x.csv", *options)
    one_line(done, code=2, message=message)
    assert not (tmp_path / "x.csv").exists()


def test_slices_without_headers_have_no_table_of_studies(tmp_path: Path) -> None:
    write_output(tmp_path / "out", ["a.png"], np.zeros((1, 3)))
    studies.write(store.to_uri(str(tmp_path / "out")), rule=studies.StudyRule("softmax"))
    done = call("table", tmp_path / "out", "-o", tmp_path / "x.csv")
    one_line(done, code=2, message="none has a DICOM header; use --by slice")
