"""Merging the files of OUT/predictions: all rows stay, whatever fails at whatever step."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import pytest

from cctmn import folder, store, tables
from cctmn.config import ScoreConfig
from cctmn.errors import CctmnError
from cctmn.numerics import CPU, Numerics
from cctmn.score import commit, compact, run
from cctmn.score.job import ScoreJob
from cctmn.score.prediction_files import PredictionFiles
from tests import compact_kills
from tests.commands import call, one_line
from tests.compact_kills import STAMP, rows_by_id, write_blocks
from tests.conftest import S3Server
from tests.makers import png, stand_in
from tests.score.conftest import predictions, results

FILES = 24


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a merged file hold about nine of the files of these tests."""
    monkeypatch.setattr(compact, "MERGED_BYTES", 12_000)
    monkeypatch.setattr(commit, "ROW_GROUP_ROWS", 6)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_blocks(tmp_path / "out", files=FILES)
    return tmp_path / "out"


def folder_of(out: Path) -> str:
    return (out / "predictions").as_uri()


def names(out: Path) -> set[str]:
    return {file.name for file in (out / "predictions").iterdir()}


def merged_names(out: Path) -> set[str]:
    return {name for name in names(out) if name.startswith(tables.MERGED)}


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


def test_all_rows_stay_and_in_the_order_of_the_files(out: Path) -> None:
    before = tables.rows(folder_of(out))
    compact.MERGED_BYTES = 10**9  # one file, so that the order of all rows can be compared
    summary = compact.compact(str(out))
    assert tables.rows(folder_of(out)) == before
    assert (summary.files_before, summary.merged, summary.files_after) == (FILES, FILES, 1)


def test_several_files_are_written_where_one_would_be_too_large(out: Path) -> None:
    before = rows_by_id(folder_of(out))
    summary = compact.compact(str(out))
    assert rows_by_id(folder_of(out)) == before
    assert 1 < summary.written == len(merged_names(out)) < FILES
    assert len(names(out)) == summary.files_after
    whole = [file for file in (out / "predictions").iterdir() if file.stat().st_size >= 12_000]
    assert len(whole) >= summary.written - 1


def test_the_same_files_give_the_same_merged_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_blocks(tmp_path / name, files=FILES)
        compact.compact(str(tmp_path / name))
    assert names(tmp_path / "a") == names(tmp_path / "b")


def test_a_merged_file_has_the_stamp_of_its_sources_and_the_sum_of_their_codes(out: Path) -> None:
    source = next((out / "predictions").iterdir())
    columns, metadata = pq.read_schema(source), dict(pq.read_schema(source).metadata)
    codes = [row["error_code"] for row in tables.rows(folder_of(out))]
    compact.MERGED_BYTES = 10**9
    compact.compact(str(out))
    [merged] = (out / "predictions").iterdir()
    assert pq.read_schema(merged).equals(columns)
    del metadata[commit.CODES]
    assert pq.read_schema(merged).metadata == metadata
    counted = commit.codes(pq.read_metadata(merged).metadata)
    assert counted == {code: codes.count(code) for code in set(codes)}
    assert commit.open_whole(merged.as_uri(), stamp=STAMP) is not None


def test_columns_are_stored_in_row_groups_of_a_bounded_number_of_rows(out: Path) -> None:
    compact.compact(str(out))
    for file in (out / "predictions").glob(f"{tables.MERGED}*"):
        footer = pq.read_metadata(file)
        rows = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        assert footer.num_row_groups > 1
        assert max(rows) < 6 + compact_kills.ROWS


def test_what_is_merged_is_not_merged_again(out: Path) -> None:
    compact.compact(str(out))
    compact.compact(str(out))  # may still merge a last file that was small
    held = names(out)
    assert compact.compact(str(out)).merged == 0
    assert names(out) == held


def test_new_files_are_merged_with_the_last_small_one(out: Path) -> None:
    compact.MERGED_BYTES = 10**9
    compact.compact(str(out))
    write_blocks(out, files=5, first=FILES)
    before = rows_by_id(folder_of(out))
    assert compact.compact(str(out)).merged == 6
    assert rows_by_id(folder_of(out)) == before
    assert len(names(out)) == 1


def test_files_of_two_devices_stay_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stamp = dataclasses.replace(STAMP, numerics=Numerics(CPU, "float32"))
    for first, device in ((0, "one"), (6, "two")):
        write_blocks(out, files=6, first=first, stamp=stamp, device_name=device)
    compact.MERGED_BYTES = 10**9
    assert compact.compact(str(out)).written == 2
    devices = {pq.read_schema(f).metadata[b"cctmn.device_name"] for f in out.rglob("*.parquet")}
    assert devices == {b"one", b"two"}


def test_an_out_on_s3_is_merged(s3: S3Server) -> None:
    s3.bucket("compact")
    write_blocks("s3://compact/out", files=FILES)
    predictions = "s3://compact/out/predictions"
    before = rows_by_id(predictions)
    summary = compact.compact("s3://compact/out")
    assert rows_by_id(predictions) == before
    assert len(tables.stored_sizes(predictions)) == summary.files_after < FILES
    assert PredictionFiles(predictions, stamp=STAMP).refresh() == 0


def test_no_row_on_s3_is_lost_or_doubled_by_an_end_while_deleting(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.bucket("ended")
    write_blocks("s3://ended/out", files=6)
    predictions = "s3://ended/out/predictions"
    before = rows_by_id(predictions)
    compact.MERGED_BYTES = 10**9
    with monkeypatch.context() as patch, contextlib.suppress(DiedError):
        die_at("2", patch)
        compact.compact("s3://ended/out")
        pytest.fail("the step was not reached")
    assert len(tables.stored_sizes(predictions)) > 1
    assert rows_by_id(predictions) == before
    assert PredictionFiles(predictions, stamp=STAMP).refresh() == 0
    assert len(tables.stored_sizes(predictions)) == 1
    assert rows_by_id(predictions) == before


def test_a_dry_run_counts_and_writes_nothing(out: Path) -> None:
    held = names(out)
    compact.MERGED_BYTES = 10**9
    done = call("compact", out, "--dry-run")
    assert done.stdout == (
        f"would merge {FILES} files into about 1: {FILES} files before, about 1 after\n"
    )
    assert names(out) == held
    assert not (out / "private").exists()


def test_the_command_ends_with_one_line(out: Path) -> None:
    compact.MERGED_BYTES = 10**9
    done = call("compact", out)
    assert done.returncode == 0
    last = done.stderr.splitlines()[-1]
    assert last == f"merged {FILES} files into 1: {FILES} files before, 1 after"
    assert json.loads(call("compact", out, "--json", "-q").stdout)["files_after"] == 1
    assert "nothing to merge: 1 files before, 1 after" in call("compact", out).stderr


def test_it_is_refused_while_a_job_writes(out: Path) -> None:
    held = names(out)
    with folder.only_writer(out.as_uri()):
        one_line(call("compact", out), code=2, message="is writing here; wait for it")
    assert names(out) == held


def test_it_is_refused_where_there_are_no_predictions(tmp_path: Path) -> None:
    one_line(call("compact", tmp_path / "no"), code=2, message="no: holds no predictions; score")
    assert not (tmp_path / "no").exists()


def test_a_file_of_somebody_else_is_named(out: Path) -> None:
    pq.write_table(pq.read_table(next(out.rglob("*.parquet")), columns=["rows"]), out / "x")
    (out / "x").rename(out / "predictions" / "x.parquet")
    one_line(call("compact", out), code=2, message="x.parquet: not a file written by cctmn; remove")


def test_a_damaged_file_is_not_merged(out: Path) -> None:
    before = rows_by_id(folder_of(out))
    damaged = sorted((out / "predictions").iterdir())[3]
    lost = pq.read_table(damaged, columns=["slice_id"])["slice_id"].to_pylist()
    damage(damaged)
    done = call("compact", out)
    assert "1 damaged files were left as they are" in done.stderr.splitlines()[-1]
    assert damaged.exists()
    assert PredictionFiles(folder_of(out), stamp=STAMP).refresh() == 1
    left = rows_by_id(folder_of(out))
    assert left == {key: row for key, row in before.items() if key not in lost}


def test_the_slices_of_a_damaged_merged_file_are_pending_again(out: Path) -> None:
    before = rows_by_id(folder_of(out))
    compact.compact(str(out))
    merged = out / "predictions" / min(merged_names(out))
    lost = pq.read_table(merged, columns=["slice_id"])["slice_id"].to_pylist()
    damage(merged)
    assert PredictionFiles(folder_of(out), stamp=STAMP).refresh() == 1
    assert rows_by_id(folder_of(out)).keys() == before.keys() - lost


def test_a_damaged_merged_file_gives_way_to_the_files_that_it_would_replace(
    out: Path, tmp_path: Path
) -> None:
    before = rows_by_id(folder_of(out))
    sources = {file: file.read_bytes() for file in (out / "predictions").iterdir()}
    compact.compact(str(out))
    merged = [out / "predictions" / name for name in merged_names(out)]
    for file, data in sources.items():
        file.write_bytes(data)
    damage(merged[0])
    assert compact.finish_deleting(folder_of(out)) == 1
    assert not merged[0].exists()
    assert rows_by_id(folder_of(out)) == before


def test_a_reader_leaves_out_the_files_that_a_merged_one_replaces(out: Path) -> None:
    before = rows_by_id(folder_of(out))
    sources = {file: file.read_bytes() for file in (out / "predictions").iterdir()}
    compact.compact(str(out))
    listed = tables.parquet_files(folder_of(out))
    for file, data in sources.items():
        file.write_bytes(data)
    assert tables.parquet_files(folder_of(out)) == listed
    assert rows_by_id(folder_of(out)) == before


def test_a_folder_without_merged_files_is_listed_without_reading_any(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "read_range", None)
    assert len(tables.parquet_files(folder_of(out))) == FILES


def test_a_footer_of_a_merged_file_is_read_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact.compact(str(out))
    listed = tables.parquet_files(folder_of(out))
    monkeypatch.setattr(store, "read_range", None)
    assert tables.parquet_files(folder_of(out)) == listed


def test_a_footer_longer_than_the_first_read_is_read_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact.compact(str(out))
    sizes = tables.stored_sizes(folder_of(out))
    monkeypatch.setattr(tables, "_FOOTER_BYTES", 100)
    for uri, size in sizes.items():
        assert len(tables.file_end(uri, size)) == tables.footer_bytes(tables.file_end(uri, size))


def test_a_withdrawn_row_of_a_merged_file_may_come_back_in_a_file_of_its_old_name(
    tmp_path: Path,
) -> None:
    """An error row that is scored again can have the same bytes, and so the same file name."""
    out = tmp_path / "out"
    write_blocks(out, files=6)
    before = rows_by_id(folder_of(out))
    write_blocks(out, files=1, first=6, error_code="truncated")
    compact.MERGED_BYTES = 10**9
    compact.compact(str(out))
    errors = sum(row["error_code"] == "truncated" for row in before.values())
    files = PredictionFiles(folder_of(out), stamp=STAMP)
    files.refresh()
    withdrawn = files.withdraw(["truncated"])
    assert withdrawn == errors + compact_kills.ROWS
    [rewritten] = names(out)
    assert tables.REPLACES not in pq.read_metadata(out / "predictions" / rewritten).metadata
    assert commit.open_whole(store.join(folder_of(out), rewritten), stamp=STAMP) is not None
    write_blocks(out, files=1, first=6, error_code="truncated")
    assert len(rows_by_id(folder_of(out))) == len(before) - errors + compact_kills.ROWS


class DiedError(BaseException):
    """Ends the process in the place of a signal."""


def die_at(step: str, patch: pytest.MonkeyPatch) -> None:
    def after(calls: int, original: Callable[..., Any]) -> Callable[..., Any]:
        left = [calls]

        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise DiedError
            return original(*args, **options)

        return call

    def named(_: Any) -> NoReturn:
        raise DiedError

    if step == "reading":
        patch.setattr(store, "read_all", after(FILES // 2, store.read_all))
    elif step == "writing":
        patch.setattr(compact._MergedFile, "_flush", after(3, compact._MergedFile._flush))
    elif step == "naming":
        patch.setattr(compact._MergedFile, "name", named)
    elif step == "before deleting":
        patch.setattr(compact, "_delete", after(1, compact._delete))
    else:
        patch.setattr(store, "delete", after(int(step), store.delete))


STEPS = ("reading", "writing", "naming", "before deleting", "1", "3", "8", "20")


@pytest.mark.parametrize("next_command", ["compact", "score"])
@pytest.mark.parametrize("step", STEPS)
def test_no_row_is_lost_or_doubled_by_an_end_while(
    step: str, next_command: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_by_id(folder_of(out))
    with monkeypatch.context() as patch, contextlib.suppress(DiedError):
        die_at(step, patch)
        compact.compact(str(out))
        pytest.fail("the step was not reached")
    assert rows_by_id(folder_of(out)) == before  # as a reader sees it
    if next_command == "compact":
        compact.compact(str(out))
    else:
        assert PredictionFiles(folder_of(out), stamp=STAMP).refresh() == 0
    assert rows_by_id(folder_of(out)) == before
    listed = {uri.rsplit("/", 1)[1] for uri in tables.parquet_files(folder_of(out))}
    assert listed == names(out)  # nothing that is replaced is left, and no temporary file


def test_a_temporary_file_of_a_killed_compaction_is_removed(out: Path) -> None:
    (out / "predictions" / ".new.123.tmp").write_bytes(b"half")
    compact.compact(str(out))
    assert not [name for name in names(out) if name.endswith(".tmp")]


def test_a_file_that_was_merged_while_it_was_read_is_one_line(out: Path) -> None:
    listed = tables.parquet_files(folder_of(out))
    compact.compact(str(out))
    for read in (lambda uri: tables.read(uri, None), lambda uri: tables.read_present(uri, [])):
        with pytest.raises(CctmnError, match=r"was merged with others while .*; run the command"):
            read(listed[0])


def test_a_job_with_many_files_names_the_command(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compact.many_files(str(out)) == ""
    monkeypatch.setattr(compact, "MANY_FILES", 10)
    assert compact.many_files(str(out)) == "24 files; `cctmn compact OUT` merges them"
    compact.compact(str(out))
    assert compact.many_files(str(out)) == ""


@pytest.mark.slow
@pytest.mark.ray
def test_a_merged_out_is_resumed_and_its_errors_are_tried_again(
    cluster: str, tmp_path: Path
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    for n in range(10):
        (archive / f"{n}.png").write_bytes(png(n) if n else png(n)[:200])
    settings = ScoreConfig(actors=1, block_rows=2)
    job = ScoreJob([str(archive)], out=str(out), source=stand_in(), settings=settings)
    assert run.score(job, address=cluster).counts.error == 1
    first = {name: results(row) for name, row in predictions(out).items()}
    compact.MERGED_BYTES = 10**9
    assert compact.compact(str(out)).files_after == 1
    (archive / "new.png").write_bytes(png(99))
    summary = run.score(dataclasses.replace(job, retry_errors=True), address=cluster)
    assert summary.scored_now == 2
    assert compact.compact(str(out)).files_after == 1
    after = {name: results(row) for name, row in predictions(out).items()}
    assert {name: row for name, row in after.items() if "new" not in name} == first
    assert run.score(job, address=cluster).scored_now == 0


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_no_row(tmp_path: Path) -> None:
    assert compact_kills.kill_often(tmp_path, kills=6, seed=1).kills == 6
