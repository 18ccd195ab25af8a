"""Files that gather several scored blocks, of several scorers and devices."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import schema, store, tables
from cctmn.config import ScoreConfig
from cctmn.numerics import FLOAT32, Numerics, device_name_of_file
from cctmn.score import commit, pipeline, run
from tests.makers import png, stand_in
from tests.score.conftest import predictions

STAMP = commit.Stamp("", "", Numerics("cuda", FLOAT32))


def rows(*scorers: tuple[str, str]) -> pa.Table:
    """One error row per scorer and name of its device."""
    columns = schema.predictions(("a",), ranked_boxes=False, masks=False)
    table = pa.Table.from_pylist(
        [{"slice_id": f"{n:016x}", "error_code": "empty_file"} for n in range(len(scorers))],
        schema=pa.schema([field.with_nullable(True) for field in columns]),
    )
    for place, name in enumerate(("scorer", "device_name")):
        table = table.append_column(name, pa.array([one[place] for one in scorers]))
    return table


def commit_rows(folder: Path, table: pa.Table) -> list[dict[str, object]]:
    folder.mkdir(exist_ok=True)
    columns = schema.predictions(("a",), ranked_boxes=False, masks=False)
    out = store.to_uri(str(folder))
    return pipeline._commit_blocks(table, out=out, columns=columns, stamp=STAMP).to_pylist()


def test_a_file_counts_the_rows_of_each_of_its_scorers(tmp_path: Path) -> None:
    counted = commit_rows(tmp_path / "out", rows(("one", "H100"), ("two", "H100"), ("one", "H100")))
    assert sorted((row["scorer"], row["rows"]) for row in counted) == [("one", 2), ("two", 1)]
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_file_names_the_one_device_of_its_rows(tmp_path: Path) -> None:
    commit_rows(tmp_path / "out", rows(("one", "H100"), ("two", "A100"), ("three", "H100")))
    held = {
        device_name_of_file(pq.read_metadata(path).metadata): pq.read_metadata(path).num_rows
        for path in (tmp_path / "out").iterdir()
    }
    assert held == {"A100": 1, "H100": 2}


def test_a_replayed_write_replaces_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        commit_rows(tmp_path / "out", rows(("one", "H100"), ("two", "H100")))
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.ray
def test_scored_blocks_are_gathered_into_one_file(cluster: str, tmp_path: Path) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    for n in range(22):
        (slices / f"{n}.png").write_bytes(png(n))
    settings = ScoreConfig(actors=2, block_rows=2, commit_rows=10)
    job = run.ScoreJob([str(slices)], str(tmp_path / "out"), stand_in(), settings)
    assert run.score(job, address=cluster).counts.ok == 22
    files = tables.parquet_files(store.to_uri(str(tmp_path / "out" / "predictions")))
    counts = [pq.read_metadata(uri.removeprefix("file://")).num_rows for uri in files]
    assert sorted(counts) == [2, 10, 10]
    assert len(predictions(tmp_path / "out")) == 22
