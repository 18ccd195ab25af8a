"""What is done and what is left, from the files alone: no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import schema, tables
from cctmn.errors import ResumeError
from cctmn.score import commit, resume
from tests.conftest import S3Server

PREDICTIONS = schema.predictions(("control", "covid"))
STAMP = commit.Stamp.of(fingerprint="f" * 32, key=b"k" * 32)


def predicted(slice_id: str, **columns: Any) -> dict[str, Any]:
    """A prediction row; None where a column is not named."""
    empty = dict.fromkeys(PREDICTIONS.names)
    return empty | {"slice_id": slice_id, "error_code": "", "flags": []} | columns


def write_predictions(folder: Path, name: str, *rows: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PREDICTIONS), folder / name)
    return folder / name


def indexed(*etags_by_id: Mapping[str, str], uri: str = "") -> Iterator[pa.Table]:
    """One inventory table for each mapping of slice_id to etag; without `uri` one object each."""
    for etags in etags_by_id:
        rows = [
            dict.fromkeys(schema.INVENTORY.names)
            | {"slice_id": slice_id, "etag": etag, "uri": uri or slice_id}
            for slice_id, etag in etags.items()
        ]
        yield pa.Table.from_pylist(rows, schema=schema.INVENTORY)


def ids_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["slice_id"] for row in rows]


def written(folder: Path, *rows: Mapping[str, Any], stamp: commit.Stamp = STAMP) -> Path:
    """The file of one commit."""
    before = set(folder.glob("*.parquet"))
    table = pa.Table.from_pylist(list(rows), schema=PREDICTIONS)
    commit.write(table, folder=folder.as_uri(), schema=PREDICTIONS, stamp=stamp)
    [file] = set(folder.glob("*.parquet")) - before
    return file


def test_a_file_that_a_killed_writer_left_is_removed_and_its_neighbour_stays(
    tmp_path: Path,
) -> None:
    whole = write_predictions(tmp_path, "a.parquet", predicted("1"))
    (tmp_path / "b.parquet").write_bytes(whole.read_bytes()[:-8])
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / ".d.parquet.123.tmp").write_bytes(b"half")
    assert resume.remove_damaged(tmp_path.as_uri(), stamp=STAMP) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_a_changed_bit_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    rows = [predicted(str(n), study_key="s" * n) for n in range(20)]
    file = written(tmp_path, *rows)
    data = file.read_bytes()
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        assert resume.remove_damaged(tmp_path.as_uri(), stamp=STAMP) == 1
        assert not file.exists()
    file.write_bytes(data)
    assert resume.remove_damaged(tmp_path.as_uri(), stamp=STAMP) == 0
    assert resume.done(tmp_path.as_uri()).to_pylist() == [row["slice_id"] for row in rows]


def test_a_damaged_page_of_an_older_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "1_000000_000000-0.parquet"
    table = pa.Table.from_pylist([predicted("1")], schema=PREDICTIONS)
    pq.write_table(table, file, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    assert resume.remove_damaged(tmp_path.as_uri(), stamp=STAMP) == 1


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        (commit.Stamp.of(fingerprint="e" * 32, key=b"k" * 32), "another model or other settings"),
        (commit.Stamp.of(fingerprint="f" * 32, key=b"q" * 32), "another private/key"),
    ],
)
def test_a_file_of_another_run_is_refused(
    stamp: commit.Stamp, message: str, tmp_path: Path
) -> None:
    """Also when OUT/private/run.json, which says the same, is lost."""
    file = written(tmp_path, predicted("1"), stamp=stamp)
    with pytest.raises(ResumeError, match=f"{file.name}: was written with {message}; use a new"):
        resume.remove_damaged(tmp_path.as_uri(), stamp=STAMP)


def test_the_same_block_written_again_replaces_itself(tmp_path: Path) -> None:
    for _ in range(2):
        rows = pa.Table.from_pylist([predicted("1")], schema=PREDICTIONS)
        commit.write(rows, folder=tmp_path.as_uri(), schema=PREDICTIONS, stamp=STAMP)
    assert len(list(tmp_path.iterdir())) == 1
    commit.write(rows[:0], folder=tmp_path.as_uri(), schema=PREDICTIONS, stamp=STAMP)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_footer_on_s3_is_not_of_this_job_and_is_kept(s3: S3Server) -> None:
    s3.bucket("resume")
    s3.upload("resume", "out/x.parquet", b"PAR1 of somebody else")
    with pytest.raises(
        ResumeError, match=r"s3://resume/out/x\.parquet: not a Parquet file.*remove"
    ):
        resume.remove_damaged("s3://resume/out", stamp=STAMP)
    assert s3.client().get_object(Bucket="resume", Key="out/x.parquet")["ContentLength"] == 21


def test_every_row_is_done_scored_or_not(tmp_path: Path) -> None:
    write_predictions(tmp_path, "a.parquet", predicted("1"), predicted("2"))
    write_predictions(tmp_path, "b.parquet", predicted("3", error_code="truncated"))
    assert resume.done(tmp_path.as_uri()).to_pylist() == ["1", "2", "3"]
    assert len(resume.done((tmp_path / "not yet there").as_uri())) == 0


def test_withdrawn_errors_are_pending_again(tmp_path: Path) -> None:
    errors = predicted("2", error_code="truncated"), predicted("3", error_code="corrupt")
    write_predictions(tmp_path, "a.parquet", predicted("1"), errors[0])
    only_errors = write_predictions(tmp_path, "b.parquet", errors[1])
    assert resume.withdraw(tmp_path.as_uri(), None) == 2
    assert resume.done(tmp_path.as_uri()).to_pylist() == ["1"]
    assert not only_errors.exists()
    [left] = tmp_path.iterdir()
    rewritten = pq.read_schema(left)
    assert rewritten.equals(PREDICTIONS)
    assert rewritten.metadata == PREDICTIONS.metadata


def test_the_first_row_of_a_double_is_kept(tmp_path: Path) -> None:
    write_predictions(tmp_path, "a.parquet", predicted("1", study_key="first"), predicted("2"))
    write_predictions(tmp_path, "b.parquet", predicted("1", study_key="second"), predicted("3"))
    write_predictions(tmp_path, "c.parquet", predicted("3"))
    assert resume.remove_doubles(tmp_path.as_uri()) == 2
    rows = tables.rows(tmp_path.as_uri())
    assert sorted(ids_of(rows)) == ["1", "2", "3"]
    assert {row["study_key"] for row in rows if row["slice_id"] == "1"} == {"first"}
    assert not (tmp_path / "c.parquet").exists()
    assert resume.remove_doubles(tmp_path.as_uri()) == 0


def test_a_new_index_keeps_what_it_lacks_and_counts_what_was_replaced(tmp_path: Path) -> None:
    folder = tmp_path.as_uri()
    first = indexed({"1": "a", "2": "a"}, {"3": "a", "5": "a"})
    assert resume.write_inventory(folder, first, finished=ids()) == 0
    # 2 and 5 were replaced, 3 has vanished, 4 is new
    second = indexed({"1": "a", "2": "b", "4": "a", "5": "b"})
    assert resume.write_inventory(folder, second, finished=ids("1", "2", "3")) == 1
    rows = {row["slice_id"]: row["etag"] for row in tables.rows(folder)}
    assert rows == {"1": "a", "2": "b", "3": "a", "4": "a", "5": "b"}
    assert {tables.generation(uri) for uri in tables.parquet_files(folder)} == {1}


def test_slices_that_a_replaced_archive_no_longer_holds_are_kept_if_they_have_a_row(
    tmp_path: Path,
) -> None:
    folder = tmp_path.as_uri()
    first = indexed({"1": "a", "2": "a"}, {"3": "a"}, uri="s3://b/z.zip")
    resume.write_inventory(folder, first, finished=ids())
    second = indexed({"4": "b"}, uri="s3://b/z.zip")
    assert resume.write_inventory(folder, second, finished=ids("1")) == 0
    assert sorted(ids_of(tables.rows(folder))) == ["1", "4"]


def test_an_interrupted_index_doubles_no_row(tmp_path: Path) -> None:
    folder = tmp_path.as_uri()
    resume.write_inventory(folder, indexed({"1": "a", "2": "a"}), finished=ids())

    def interrupted() -> Iterator[pa.Table]:
        yield from indexed({"1": "b"})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume.write_inventory(folder, interrupted(), finished=ids())
    rows = [row for table in tables.inventory(folder) for row in table.to_pylist()]
    assert sorted((row["slice_id"], row["etag"]) for row in rows) == [("1", "b"), ("2", "a")]


@pytest.mark.parametrize(
    ("limit", "left"), [(None, ["2", "4", "5"]), (2, ["2", "4"]), (0, [])], ids=str
)
def test_what_is_left_is_written_up_to_the_limit(
    limit: int | None, left: list[str], tmp_path: Path
) -> None:
    folder = tmp_path.as_uri()
    resume.write_todo(folder, indexed=indexed({"old": ""}), finished=ids(), limit=None)
    tables_of_run = indexed({"1": "", "2": ""}, {"3": "", "4": "", "5": ""})
    written = resume.write_todo(folder, indexed=tables_of_run, finished=ids("1", "3"), limit=limit)
    assert written == len(left)
    assert ids_of(tables.rows(folder)) == left


def ids(*names: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(names)], pa.string())


def test_counts_balance(tmp_path: Path) -> None:
    scored = {"pred_class": "covid", "flags": ["hu_guessed"]}
    outside = predicted("5", pred_class="covid", abstained=True)
    rows = predicted("1", **scored), predicted("2", **scored), outside
    write_predictions(tmp_path, "a.parquet", *rows)
    refused = predicted("3", error_code="truncated", flags=["hu_guessed"])
    write_predictions(tmp_path, "b.parquet", predicted("4", pred_class="control"), refused)
    write_predictions(tmp_path, "c.parquet", predicted("8", error_code="localizer"))
    counts = resume.count(
        tmp_path.as_uri(), indexed=indexed(dict.fromkeys("123", ""), dict.fromkeys("45678", ""))
    )
    assert (counts.inventory, counts.ok, counts.error, counts.pending) == (8, 4, 1, 2)
    assert counts.abstained == 1  # and in no class
    assert counts.passed_over == 1
    assert counts.codes == {"localizer": 1, "truncated": 1}
    assert counts.flags == {"hu_guessed": 2}  # of scored rows only
    assert counts.classes == {"control": 1, "covid": 2}


def test_a_prediction_of_an_unknown_slice_is_an_error(tmp_path: Path) -> None:
    write_predictions(tmp_path, "a.parquet", predicted("1"), predicted("stranger"))
    with pytest.raises(ResumeError, match=r"1 rows are of slices that the inventory does not know"):
        resume.count(tmp_path.as_uri(), indexed=indexed({"1": "", "2": ""}))


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ResumeError, match=r"x\.parquet: not a file written by cctmn; remove it"):
        resume.done(tmp_path.as_uri())
