"""The table that `cctmn labels covidx-ct` writes is read by score, train and evaluate alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from cctmn import store
from cctmn.classes import COVIDX_CLASSES
from cctmn.data.labels import covidx_ct, read_labels, to_bytes
from cctmn.data.slices import open_slices
from cctmn.errors import DataError
from cctmn.read import inventory
from cctmn.user_table import read_user_table
from tests.makers import png

NAMES = ["Normal_1_2_3.png", "CP_0012_1_0001.png", "NCP_7_8_9.png"]
CLASSES = ["control", "pneumonia", "covid"]


@pytest.fixture(params=["csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    split = tmp_path / "split.txt"
    split.write_text("".join(f"{name} {i} 1 2 3 4\n" for i, name in enumerate(NAMES)))
    place = tmp_path / f"labels.{request.param}"
    place.write_bytes(to_bytes(covidx_ct(str(split))[0], parquet=request.param == "parquet"))
    return str(place)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        (folder / name).write_bytes(png(seed))
    return folder


def test_score_indexes_its_slices(table: str, images: Path) -> None:
    [rows] = inventory.index([table], key=b"key", root=str(images))
    assert [uri.rpartition("/")[2] for uri in rows["uri"].to_pylist()] == NAMES
    assert set(rows["error_code"].to_pylist()) == {""}


def test_train_opens_its_slices(table: str, images: Path) -> None:
    opened = open_slices(table, root=str(images), classes=COVIDX_CLASSES)
    assert [s.image for s in opened.samples] == [store.to_uri(str(images / n)) for n in NAMES]
    assert [s.label for s in opened.samples] == [0, 1, 2]
    assert [s.patient for s in opened.samples] == ["1", "0012", "7"]


def test_evaluate_reads_its_labels(table: str) -> None:
    labels = read_labels(table, classes=COVIDX_CLASSES)
    assert labels.table["label"].to_pylist() == CLASSES
    assert labels.patient == ["1", "0012", "7"]


@pytest.mark.parametrize("column", ["uri", "path", "name"])
def test_each_column_that_names_slices_will_do(tmp_path: Path, column: str) -> None:
    (tmp_path / "t.csv").write_text(f"{column},label\na.png,covid\n")
    assert read_user_table(str(tmp_path / "t.csv")).slices() == ["a.png"]
    [sample] = open_slices(str(tmp_path / "t.csv"), classes=COVIDX_CLASSES).samples
    assert sample.image == (tmp_path / "a.png").as_uri()


def test_a_root_without_a_table_is_refused(images: Path) -> None:
    with pytest.raises(DataError, match="--root"):
        open_slices(str(images), root=str(images), classes=COVIDX_CLASSES)


def test_missing_columns_name_those_that_are_present(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,class\na.png,covid\n")
    with pytest.raises(
        DataError, match=r"no column uri, path or name; .* \(present: file, class\)"
    ):
        read_user_table(str(tmp_path / "t.csv")).slices()
