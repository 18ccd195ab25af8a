"""Tables of labels: COVIDx-CT's made, any data set's read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn.data import labels
from cctmn.data.labels import covidx_ct, identities, keys_of, read_labels, read_table
from cctmn.errors import DataError, ObjectError
from cctmn.schema import LABELS
from tests.conftest import S3Server

CLASSES = ("control", "pneumonia", "covid")
SPLIT = "Normal_7_70_0001.png 0 1 2 30 40\nCP_8_80_0002.png 1 0 0 9 9\nNCP_0009_90_3.png 2\n"


def text(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8-sig")
    return str(folder / name)


def test_covidx_ct_becomes_a_table(tmp_path):
    split = text(tmp_path, "split.txt", SPLIT)
    table, strange = covidx_ct(split)
    assert table.schema.equals(LABELS)
    assert strange == []
    assert table.to_pylist()[0] == {
        "uri": "Normal_7_70_0001.png",
        "label": "control",
        "patient": "7",
        "scan": "70",
        "body_x0": 1,
        "body_y0": 2,
        "body_x1": 30,
        "body_y1": 40,
    }
    assert table["patient"].to_pylist() == ["7", "8", "0009"]
    assert table["body_x1"].to_pylist() == [30, 9, None]


def test_a_list_excludes_under_the_authors_names(tmp_path):
    split = text(tmp_path, "split.txt", SPLIT)
    table, strange = covidx_ct(
        split, exclude=text(tmp_path, "list.txt", "1_8_80_0002.png\n0_5_5_5\n")
    )
    assert table["uri"].to_pylist() == ["Normal_7_70_0001.png", "NCP_0009_90_3.png"]
    assert strange == ["0_5_5_5"]
    with pytest.raises(DataError, match="excludes every slice"):
        covidx_ct(split, exclude=split)


def test_a_box_is_four_numbers(tmp_path):
    with pytest.raises(DataError, match=r"line 1, CP_8_80_0002.png: a box is four whole numbers"):
        covidx_ct(text(tmp_path, "split.txt", "CP_8_80_0002.png 1 0 x 9 9\n"))


def test_the_58782_slices(shared):
    """The published set: counts by class, patients, and none of the author's 3000."""
    split = shared / "data/covidx_ct_v1/train_COVIDx_CT-1.txt"
    exclude = shared / "data/covid_ct_mask_net/train_split_classification.txt"
    table, strange = covidx_ct(str(split), exclude=str(exclude))
    assert strange == []
    counts = {c["values"]: c["counts"] for c in table["label"].value_counts().to_pylist()}
    assert counts == {"control": 26_201, "pneumonia": 21_061, "covid": 11_520}
    assert len(table) == 58_782
    assert len(set(table["patient"].to_pylist())) == 862


def test_written_tables_read_back(tmp_path, s3: S3Server):
    table, _ = covidx_ct(text(tmp_path, "split.txt", SPLIT))
    (tmp_path / "t.csv").write_bytes(labels.to_bytes(table, parquet=False))
    (tmp_path / "t.parquet").write_bytes(labels.to_bytes(table, parquet=True))
    s3.bucket("labels")
    s3.upload("labels", "t.csv", (tmp_path / "t.csv").read_bytes())
    for place in (
        tmp_path / "t.csv",
        tmp_path / "t.parquet",
        "s3://labels/t.csv",
        tmp_path / "split.txt",
    ):
        result = read_labels(str(place), classes=CLASSES)
        assert result.truth_N.tolist() == [0, 1, 2]
        assert result.patient == ["7", "8", "0009"]
        names = keys_of(result.table, key="name", place="t")
        assert names == ["Normal_7_70_0001.png", "CP_8_80_0002.png", "NCP_0009_90_3.png"]


def test_labels_of_other_data_sets(tmp_path):
    csv = text(tmp_path, "l.csv", "path, label ,patient,sex\na/1.png,nCT, 01,F\nb/2.png,pCT,2,\n")
    result = read_labels(csv, classes=("control", "covid"))
    assert result.truth_N.tolist() == [0, 1]
    assert result.patient == ["01", "2"]
    assert result.table["sex"].to_pylist() == ["F", ""]
    assert keys_of(result.table, key="uri", place=csv) == ["a/1.png", "b/2.png"]
    numbers = pa.table({"name": ["1", "2"], "label": [1, 0], "patient": [3, None]})
    pq.write_table(numbers, tmp_path / "l.parquet")
    result = read_labels(
        str(tmp_path / "l.parquet"),
        classes=("benign", "malignant"),
        label_map={"0": "benign", "1": "malignant"},
    )
    assert result.truth_N.tolist() == [1, 0]
    assert result.patient == ["3", ""]


def test_frames_and_members_are_distinguished(tmp_path):
    csv = text(
        tmp_path, "l.csv", "uri,frame,label\na.tif,0,covid\na.tif,1,covid\nz.zip::d/m,0,covid\n"
    )
    table = read_labels(csv, classes=CLASSES).table
    assert keys_of(table, key="name", place=csv) == ["a.tif", "a.tif", "m"]
    with pytest.raises(
        DataError, match=r"no column slice_id to join by; use --key with one of: uri"
    ):
        keys_of(table, key="slice_id", place=csv)
    twice = text(tmp_path, "m.csv", "uri,label\na/1,covid\nb/1,covid\n")
    with pytest.raises(DataError, match=r"1 slices are listed more than once; .*--key uri \(1\)"):
        keys_of(read_table(twice)[0], key="name", place=twice)
    assert keys_of(read_table(twice)[0], key="uri", place=twice) == ["a/1", "b/1"]


def test_identities_are_one_for_two_names():
    table = pa.table({"uri": ["x/0_1728_1013_0023.png", "Normal_1728_1013_0023.png", "scan.dcm"]})
    one, other, plain = identities(table)
    assert one == other != plain
    assert identities(pa.table({"slice_id": ["ab"]})) == ["ab"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "uri,label\na,covid,x\n", "not a CSV table"),
        ("l.parquet", "text", "not a Parquet file"),
        ("l.xlsx", "", "not a labels table; give a .csv or .parquet"),
        ("l.txt", "a.png\n", "has no class"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_labels(text(tmp_path, name, content), classes=CLASSES)
    with pytest.raises(ObjectError, match="not found; give a labels table"):
        read_labels(str(tmp_path / "none.csv"), classes=CLASSES)
    (tmp_path / "latin.csv").write_bytes(b"uri,label\n\xe5.png,covid\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_table(str(tmp_path / "latin.csv"))
