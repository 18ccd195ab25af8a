"""The Parquet tables of an output folder, without Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import tables
from cctmn.errors import ResumeError
from tests.conftest import S3Server


def write(folder: Path, name: str, **columns: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def inventory(folder: Path) -> list[tuple[str, str]]:
    read = [table.to_pylist() for table in tables.inventory(folder.as_uri())]
    return sorted((row["slice_id"], row["etag"]) for table in read for row in table)


def test_parquet_files_are_sorted_and_other_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "a.json", ".b.parquet.1.tmp"):
        (tmp_path / name).write_bytes(b"")
    names = [uri.rsplit("/", 1)[1] for uri in tables.parquet_files(tmp_path.as_uri())]
    assert names == ["a.parquet", "b.parquet"]


def test_a_missing_folder_has_no_files(tmp_path: Path, s3: S3Server) -> None:
    s3.bucket("tables")
    assert tables.parquet_files((tmp_path / "none").as_uri()) == []
    assert tables.parquet_files("s3://tables/none") == []


def test_rows_and_columns(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", slice_id=["1", "2"], label=["x", "y"])
    write(tmp_path, "b.parquet", slice_id=["3"], label=["z"])
    assert tables.rows(tmp_path.as_uri()) == [
        {"slice_id": "1", "label": "x"},
        {"slice_id": "2", "label": "y"},
        {"slice_id": "3", "label": "z"},
    ]
    table = tables.read((tmp_path / "b.parquet").as_uri(), ["label"])
    assert table.to_pydict() == {"label": ["z"]}


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not yet whole")
    with pytest.raises(ResumeError, match=r"a\.parquet: not a file written by cctmn; remove it"):
        tables.read((tmp_path / "a.parquet").as_uri(), None)
    write(tmp_path, "b.parquet", other=["1"])
    with pytest.raises(ResumeError, match=r"b\.parquet: not a file written by cctmn"):
        tables.read((tmp_path / "b.parquet").as_uri(), ["slice_id"])


def test_of_a_row_written_twice_the_newer_one_is_read(tmp_path: Path) -> None:
    """A run that has looked into an object again drops its older rows only at the end."""
    one, two, three = (f"{n:032x}" for n in (1, 2, 3))
    write(tmp_path, "r000000-0.parquet", slice_id=[one, two], etag=["old", "old"])
    write(tmp_path, "r000001-0.parquet", slice_id=[two], etag=["new"])
    write(tmp_path, "r000001-1.parquet", slice_id=[three], etag=["new"])
    assert inventory(tmp_path) == [(one, "old"), (two, "new"), (three, "new")]


def test_the_generation_of_an_inventory_file() -> None:
    assert tables.generation("file:///out/private/inventory/r000012-3.parquet") == 12
    with pytest.raises(ResumeError, match="not a file of the inventory; remove it from OUT"):
        tables.generation("file:///out/private/inventory/other.parquet")
