"""The one parser of user tables: CSV and Parquet give the same text, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.labels import read_labels, to_bytes
from cctmn.data.slices import open_slices
from cctmn.errors import DataError
from cctmn.user_table import read_user_table


def parquet(folder: Path, table: pa.Table) -> str:
    pq.write_table(table, folder / "t.parquet")
    return str(folder / "t.parquet")


def csv_file(folder: Path, text: str) -> str:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return str(folder / "t.csv")


def test_csv_keeps_leading_zeros_and_drops_the_byte_order_mark(tmp_path: Path) -> None:
    read = read_user_table(csv_file(tmp_path, "\ufeffuri, patient\na.png, 0012 \n"))
    assert read.table.column_names == ["uri", "patient"]
    assert read.column("patient") == ["0012"]


def test_parquet_numbers_categories_and_nulls_become_text(tmp_path: Path) -> None:
    columns = {
        "name": pa.array(["a.png", "b.png"]).dictionary_encode(),
        "label": pa.array([0, 2], pa.int8()),
        "patient": pa.array(["0012", None]),
        "frame": pa.array([0, 1]),
    }
    read = read_user_table(parquet(tmp_path, pa.table(columns)))
    assert read.slices() == ["a.png", "b.png"]
    assert read.column("label") == ["0", "2"]
    assert read.column("patient") == ["0012", ""]
    # only columns with known names are text
    assert read.table["frame"].type == pa.int64()


@pytest.mark.parametrize("gap", ["", "nan", "NaN", "None", "N/A", "<NA>", "unknown"])
def test_a_gap_in_the_column_of_patients_is_an_unknown_patient(tmp_path: Path, gap: str) -> None:
    read = read_user_table(csv_file(tmp_path, f"uri,patient\na.png,{gap}\nb.png,7.0\n"))
    assert read.column("patient") == ["", "7"]


def test_an_id_that_ends_like_a_number_is_kept_beside_other_ids(tmp_path: Path) -> None:
    read = read_user_table(csv_file(tmp_path, "uri,patient\na.png,1.2.0\nb.png,7.0\n"))
    assert read.column("patient") == ["1.2.0", "7.0"]


@pytest.mark.parametrize("text", ["uri,label\na.png,covid,Jane Doe\n", "a.png,covid,Jane Doe\n"])
def test_the_cells_of_a_broken_table_are_not_in_the_text_of_its_error(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(csv_file(tmp_path, text), classes=COVIDX_CLASSES)
    assert "Jane" not in caught.value.text
    with pytest.raises(DataError) as caught:
        read_user_table(csv_file(tmp_path, text)).slices()
    assert "Jane" not in caught.value.text


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    doubled = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["uri", "uri"])
    for place in (csv_file(tmp_path, "uri,uri\na,b\n"), parquet(tmp_path, doubled)):
        with pytest.raises(DataError, match="two columns have the same name; rename one"):
            read_user_table(place)


def test_a_known_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    place = parquet(tmp_path, pa.table({"uri": ["a"], "label": pa.array([[1, 2]])}))
    with pytest.raises(DataError, match=r"column label holds list<.*>, not text"):
        read_user_table(place)


def test_an_empty_slice_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: no uri; fill it in"):
        read_user_table(csv_file(tmp_path, "uri,label\na.png,0\n,1\n")).slices()


def test_training_lists_prefer_path_and_manifests_prefer_uri(tmp_path: Path) -> None:
    """Each reader keeps the column that it read before the three became synonyms."""
    place = csv_file(tmp_path, "uri,path,name,label\nu.png,p.png,n.png,covid\n")
    assert read_user_table(place).slices() == ["u.png"]
    [sample] = open_slices(place, classes=COVIDX_CLASSES).samples
    assert sample.name == "p.png"
    labels = read_labels(place, classes=COVIDX_CLASSES)
    assert labels.table["uri"].to_pylist() == ["u.png"]
    assert labels.table["name"].to_pylist() == ["n.png"]


def test_formulas_are_guarded_in_csv_and_read_back(tmp_path: Path) -> None:
    """Spreadsheets run a cell that begins with one of these."""
    names = ["=1+1", "+1", "-1.png", "@x", "'=quoted", "plain.png", "a=b"]
    table = pa.table({"uri": names, "label": ["covid"] * len(names)})
    data = to_bytes(table, parquet=False)
    cells = [line.split(",")[0].strip('"') for line in data.decode().splitlines()[1:]]
    assert cells == ["'=1+1", "'+1", "'-1.png", "'@x", "''=quoted", "plain.png", "a=b"]
    (tmp_path / "t.csv").write_bytes(data)
    read = read_user_table(str(tmp_path / "t.csv")).slices()
    assert read == names


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_the_header_shows_the_separator(tmp_path: Path, separator: str) -> None:
    text = "uri,label,patient\na.png,covid,1\n".replace(",", separator)
    read = read_user_table(csv_file(tmp_path, text))
    assert read.table.to_pylist() == [{"uri": "a.png", "label": "covid", "patient": "1"}]


def test_a_semicolon_inside_a_comma_separated_header_is_kept(tmp_path: Path) -> None:
    read = read_user_table(csv_file(tmp_path, "uri,label,a;b;c;d\na.png,covid,x;y\n"))
    assert read.table.column_names == ["uri", "label", "a;b;c;d"]


def test_case_and_blanks_of_known_columns_do_not_matter(tmp_path: Path) -> None:
    columns = ["URI", " Label ", "Patient", "Slice ID", "Sex"]
    known = ["uri", "label", "patient", "slice_id", "Sex"]
    read = read_user_table(csv_file(tmp_path, ",".join(columns) + "\na,covid,1,x,F\n"))
    assert read.table.column_names == known
    table = pa.table({name: ["a"] for name in columns})
    assert read_user_table(parquet(tmp_path, table)).table.column_names == known


def test_a_column_of_peoples_names_is_not_taken_for_names_of_slices(tmp_path: Path) -> None:
    for header in ("uri,label,Name", "URI,label,Name"):
        read = read_user_table(csv_file(tmp_path, f"{header}\na.png,covid,Jane\n"))
        assert read.table.column_names == ["uri", "label", "Name"]
