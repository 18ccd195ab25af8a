"""What the metadata of a committed file say about its rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import tables
from cctmn.score import commit

STAMP = commit.Stamp.of(fingerprint="f", key=b"k")


def written(folder: Path, codes: list[str]) -> str:
    rows = pa.table({"slice_id": [str(n) for n in range(len(codes))], "error_code": codes})
    commit.write(rows, folder=folder.as_uri(), schema=rows.schema, stamp=STAMP)
    [uri] = tables.parquet_files(folder.as_uri())
    return uri


def test_a_file_counts_its_rows_by_error_code(tmp_path: Path) -> None:
    uri = written(tmp_path, ["", "truncated", ""])
    metadata = tables.schema(uri).metadata
    assert commit.codes(metadata) == {"": 2, "truncated": 1}


def test_a_file_without_the_count_says_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"error_code": [""]}), tmp_path / "older.parquet")
    assert commit.codes(tables.schema((tmp_path / "older.parquet").as_uri()).metadata or {}) is None


def test_a_rewritten_file_does_not_keep_an_old_count(tmp_path: Path) -> None:
    uri = written(tmp_path, ["", "truncated"])
    commit.rewrite(tables.read(uri, None).slice(0, 1), uri)
    [uri] = tables.parquet_files(tmp_path.as_uri())
    assert commit.codes(tables.schema(uri).metadata or {}) is None
