"""What is done, from the files alone: no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import id_set, schema, store, tables
from cctmn.errors import ResumeError
from cctmn.score import commit, reconcile
from cctmn.score.prediction_files import PredictionFiles
from tests.conftest import S3Server

PREDICTIONS = schema.predictions(("control", "covid"))
STAMP = commit.Stamp.of(fingerprint="f" * 32, key=b"k" * 32)


def predicted(number: str, **columns: Any) -> dict[str, Any]:
    """The prediction row of a slice by its number; None where a column is not named."""
    empty = dict.fromkeys(PREDICTIONS.names)
    return empty | {"slice_id": slice_id(number), "error_code": "", "flags": []} | columns


def slice_id(number: str) -> str:
    return f"{int(number):032x}"


def opened(folder: Path | str, *, stamp: commit.Stamp | None = STAMP) -> PredictionFiles:
    """The files of a folder, read."""
    files = PredictionFiles(folder if isinstance(folder, str) else folder.as_uri(), stamp=stamp)
    files.refresh()
    return files


def removed_from(folder: Path | str) -> int:
    return PredictionFiles(
        folder if isinstance(folder, str) else folder.as_uri(), stamp=STAMP
    ).refresh()


def are_done(files: PredictionFiles, *numbers: str) -> list[bool]:
    ids = id_set.of_hex(pa.array([slice_id(number) for number in numbers], pa.string()))
    return files.finished.contains(ids).tolist()


def write_predictions(folder: Path, name: str, *rows: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PREDICTIONS), folder / name)
    return folder / name


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
    assert removed_from(tmp_path) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_a_changed_bit_anywhere_in_a_file_is_found(tmp_path: Path) -> None:
    rows = [predicted(str(n), study_key="s" * n) for n in range(20)]
    file = written(tmp_path, *rows)
    data = file.read_bytes()
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        assert removed_from(tmp_path) == 1
        assert not file.exists()
    file.write_bytes(data)
    assert removed_from(tmp_path) == 0
    assert all(are_done(opened(tmp_path), *map(str, range(20))))


def test_a_damaged_page_of_an_older_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "1_000000_000000-0.parquet"
    table = pa.Table.from_pylist([predicted("1")], schema=PREDICTIONS)
    pq.write_table(table, file, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(data)
    assert removed_from(tmp_path) == 1


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
        removed_from(tmp_path)


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
        removed_from("s3://resume/out")
    assert s3.client().get_object(Bucket="resume", Key="out/x.parquet")["ContentLength"] == 21


def test_every_row_is_done_scored_or_not(tmp_path: Path) -> None:
    write_predictions(tmp_path, "a.parquet", predicted("1"), predicted("2"))
    write_predictions(tmp_path, "b.parquet", predicted("3", error_code="truncated"))
    assert are_done(opened(tmp_path), "1", "2", "3", "4") == [True, True, True, False]
    assert len(opened(tmp_path / "not yet there").finished) == 0


def test_withdrawn_errors_are_pending_again(tmp_path: Path) -> None:
    errors = predicted("2", error_code="truncated"), predicted("3", error_code="corrupt")
    write_predictions(tmp_path, "a.parquet", predicted("1"), errors[0])
    only_errors = write_predictions(tmp_path, "b.parquet", errors[1])
    files = opened(tmp_path)
    assert files.withdraw(None) == 2
    assert are_done(files, "1", "2", "3") == [True, False, False]
    assert files.tally().codes == {"": 1}
    assert not only_errors.exists()
    [left] = tmp_path.iterdir()
    rewritten = pq.read_schema(left)
    assert rewritten.equals(PREDICTIONS)
    assert rewritten.metadata == PREDICTIONS.metadata


def test_the_first_row_of_a_double_is_kept(tmp_path: Path) -> None:
    write_predictions(tmp_path, "a.parquet", predicted("1", study_key="first"), predicted("2"))
    write_predictions(tmp_path, "b.parquet", predicted("1", study_key="second"), predicted("3"))
    write_predictions(tmp_path, "c.parquet", predicted("3"))
    files = opened(tmp_path)
    assert files.remove_doubles() == 2
    rows = tables.rows(tmp_path.as_uri())
    assert sorted(ids_of(rows)) == [slice_id(number) for number in "123"]
    assert {row["study_key"] for row in rows if row["slice_id"] == slice_id("1")} == {"first"}
    assert not (tmp_path / "c.parquet").exists()
    assert files.remove_doubles() == 0
    assert len(files.finished) == 3


def indexed(folder: Path, numbers: str) -> str:
    """The URI of an inventory of these slices."""
    rows = [dict.fromkeys(schema.INVENTORY.names) | {"slice_id": slice_id(n)} for n in numbers]
    table = pa.Table.from_pylist(rows, schema=schema.INVENTORY)
    tables.put_private(table, (folder / "inventory").as_uri(), name="g000000-000000")
    return (folder / "inventory").as_uri()


def test_counts_balance(tmp_path: Path) -> None:
    scored = {"pred_class": "covid", "flags": ["hu_guessed"]}
    outside = predicted("5", pred_class="covid", abstained=True)
    rows = predicted("1", **scored), predicted("2", **scored), outside
    write_predictions(tmp_path / "out", "a.parquet", *rows)
    refused = predicted("3", error_code="truncated", flags=["hu_guessed"])
    write_predictions(tmp_path / "out", "b.parquet", predicted("4", pred_class="control"), refused)
    write_predictions(tmp_path / "out", "c.parquet", predicted("8", error_code="localizer"))
    counts = reconcile.count(opened(tmp_path / "out"), inventory=indexed(tmp_path, "12345678"))
    assert (counts.inventory, counts.ok, counts.error, counts.pending) == (8, 4, 1, 2)
    assert counts.abstained == 1  # and in no class
    assert counts.passed_over == 1
    assert counts.codes == {"localizer": 1, "truncated": 1}
    assert counts.flags == {"hu_guessed": 2}  # of scored rows only
    assert counts.classes == {"control": 1, "covid": 2}


def test_a_prediction_of_an_unknown_slice_is_an_error(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", "a.parquet", predicted("1"), predicted("99"))
    with pytest.raises(ResumeError, match=r"1 rows are of slices that the inventory does not know"):
        reconcile.count(opened(tmp_path / "out"), inventory=indexed(tmp_path, "12"))


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ResumeError, match=r"x\.parquet: not a file written by cctmn; remove it"):
        opened(tmp_path)


def test_a_file_is_read_once_however_often_its_folder_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, predicted("1"))
    written(tmp_path, predicted("2", error_code="truncated"))
    read: list[str] = []
    read_range = store.read_range
    monkeypatch.setattr(
        "cctmn.store.objects.read_range",
        lambda uri, **span: (read.append(uri), read_range(uri, **span))[1],
    )
    files = opened(tmp_path)
    written(tmp_path, predicted("3"))
    files.refresh()
    files.refresh()
    assert (len(files.finished), files.remove_doubles(), files.withdraw(["corrupt"])) == (3, 0, 0)
    assert len(read) == len(set(read)) == 3


def test_a_folder_that_is_only_read_keeps_its_damaged_files(tmp_path: Path) -> None:
    file = written(tmp_path, predicted("1"))
    file.write_bytes(file.read_bytes()[:-8])
    assert len(opened(tmp_path, stamp=None).finished) == 0
    assert file.exists()
