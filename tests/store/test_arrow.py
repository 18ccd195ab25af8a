"""Any storage as a file system of Arrow: what Parquet, Ray Data and Ray Train do with it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from cctmn import store, tables
from cctmn.errors import StoreError
from cctmn.store import s3_client, s3_errors
from tests.conftest import S3Server


@pytest.fixture(params=["out", "a[1]?*", "double//slash"])
def folder(request: pytest.FixtureRequest, s3: S3Server) -> str:
    """A folder on S3 whose name may hold what a glob gives a meaning to."""
    s3.bucket("arrow")
    return f"s3://arrow/{request.param}"


def test_a_folder_of_tables_is_written_listed_and_read(folder: str) -> None:
    filesystem, path = store.arrow_filesystem(folder)
    filesystem = pickle.loads(pickle.dumps(filesystem))  # Ray sends it to its workers
    table = pa.table({"slice_id": ["1", "2"]})
    pq.write_table(table, f"{path}/predictions/a.parquet", filesystem=filesystem)
    store.put(f"{folder}/predictions/deep/b.txt", b"b")
    assert tables.parquet_files(f"{folder}/predictions") == [f"{folder}/predictions/a.parquet"]
    assert tables.read(f"{folder}/predictions/a.parquet", ["slice_id"]) == table
    kinds = {
        info.path.removeprefix(path): info.type
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    }
    assert kinds == {
        "/predictions": pafs.FileType.Directory,
        "/predictions/a.parquet": pafs.FileType.File,
        "/predictions/deep": pafs.FileType.Directory,
        "/predictions/deep/b.txt": pafs.FileType.File,
    }
    [top] = filesystem.get_file_info(pafs.FileSelector(path))
    assert top.base_name == "predictions"
    none = filesystem.get_file_info(f"{path}/none")
    assert none.type == pafs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{path}/none")
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(pafs.FileSelector(f"{path}/none"))
    filesystem.delete_dir(f"{path}/predictions")
    assert list(store.list_below(folder)) == []


def test_a_folder_is_copied_there_and_back(folder: str, tmp_path: Path) -> None:
    filesystem, path = store.arrow_filesystem(folder)
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "deep" / "weights").write_bytes(bytes(3_000_000))
    (tmp_path / "here" / "card").write_bytes(b"card")
    local = pafs.LocalFileSystem()
    pafs.copy_files(str(tmp_path / "here"), path, local, filesystem)
    pafs.copy_files(path, str(tmp_path / "back"), filesystem, local)
    assert (tmp_path / "back" / "deep" / "weights").read_bytes() == bytes(3_000_000)
    assert (tmp_path / "back" / "card").read_bytes() == b"card"


def test_a_file_that_nobody_closed_is_not_written(folder: str) -> None:
    filesystem, path = store.arrow_filesystem(folder)
    stream = filesystem.open_output_stream(f"{path}/half")
    stream.write(b"half")
    del stream
    assert store.look_up(f"{folder}/half") is None


@pytest.fixture
def failing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that answers 503 to every request."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
    s3_client.clear()
    s3.fault = lambda environ: ("503 Service Unavailable", "SlowDown")
    yield s3
    s3.fault = None
    s3_client.clear()


@pytest.mark.usefixtures("failing")
def test_a_failure_of_the_storage_keeps_its_sentence_through_arrow() -> None:
    filesystem, path = store.arrow_filesystem("s3://arrow/out")
    with pytest.raises(StoreError, match="S3 did not answer"):
        filesystem.get_file_info(path)
    with pytest.raises(StoreError, match="S3 did not answer"):
        filesystem.open_input_stream(path)
    with (
        pytest.raises(StoreError, match="S3 did not answer"),
        filesystem.open_output_stream(path) as stream,
    ):
        stream.write(b"x")
