"""The index of a run: what is looked into, what is kept, and what is left to score. No Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cctmn import id_set, schema, tables
from cctmn.errors import InputError
from cctmn.id_set import IdSet
from cctmn.pseudonym import pseudonym
from cctmn.score import indexing
from cctmn.score.indexing import Index, Inventory
from cctmn.score.todo import Todo
from cctmn.store import ObjectInfo
from tests.conftest import RecordingReporter


def slice_id(uri: str, frame: int = 0) -> str:
    return pseudonym(b"key", uri, str(frame))


class Archive:
    """An archive in memory: name -> (ETag, number of slices or an error code)."""

    def __init__(self, out: Path, **objects: tuple[str, int | str]) -> None:
        self.objects = objects
        self.out = out
        self.opened: list[str] = []
        self.finished: list[str] = []  # ids

    def listed(self) -> Iterator[ObjectInfo]:
        for name, (etag, _) in sorted(self.objects.items()):
            yield ObjectInfo(name, 100, etag)

    def look(self, objects: Sequence[ObjectInfo]) -> pa.Table:
        rows = []
        for info in objects:
            self.opened.append(info.uri)
            held = self.objects[info.uri][1]
            for frame in range(1 if isinstance(held, str) else held):
                rows.append(
                    dict.fromkeys(schema.INVENTORY.names)
                    | {"slice_id": slice_id(info.uri, frame), "uri": info.uri, "etag": info.etag}
                    | {"object_size": info.size, "error_code": held if held == str(held) else ""}
                )
        table = pa.Table.from_pylist(rows, schema=schema.INVENTORY)
        return table.replace_schema_metadata({schema.WHOLE_OBJECTS: b"1"})

    def run(self, *, retry_errors: bool = False, limit: int | None = None) -> Run:
        return Run(self, retry_errors=retry_errors, limit=limit)


class Run:
    """An index of an archive that has come to its end."""

    def __init__(self, archive: Archive, *, retry_errors: bool, limit: int | None) -> None:
        archive.opened.clear()
        finished = IdSet(id_set.of_hex(pa.array(archive.finished, pa.string())))
        self.folder = (archive.out / "inventory").as_uri()
        self.inventory = Inventory(self.folder, retry_errors=retry_errors)
        self.inventory.read(finished=finished)
        self.todo = Todo((archive.out / "todo").as_uri(), limit=limit)
        self.reporter = RecordingReporter()
        self.index = Index(
            archive.listed(),
            known=self.inventory,
            todo=self.todo,
            finished=finished,
            key=b"key",
            report=self.reporter,
        )
        self.index.look = archive.look
        with self.index:
            self.index.wait(rows=None)
        taken = tables.read_each(self.todo.take().files)
        self.to_score = [row["slice_id"] for row in rows_of(taken)]
        self.inventory.drop_replaced(finished=finished)

    def slices(self) -> list[tuple[str, str]]:
        """Every row of the inventory by id, with its ETag."""
        rows = rows_of(tables.inventory(self.folder))
        return sorted((row["slice_id"], row["etag"]) for row in rows)


def rows_of(parts: Iterator[pa.Table]) -> list[dict[str, str]]:
    return [row for part in parts for row in part.to_pylist()]


def test_an_unchanged_object_is_not_opened_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path, a=("1", 1), b=("1", 3))
    first = archive.run()
    assert archive.opened == ["a", "b"]
    second = archive.run()
    assert archive.opened == []
    assert second.slices() == first.slices()
    assert second.to_score == first.to_score
    assert list(second.index.lines()) == ["2 objects are unchanged, 0 are new"]


def test_only_new_and_changed_objects_are_opened(tmp_path: Path) -> None:
    archive = Archive(tmp_path, **{f"o{n:03d}": ("1", 1) for n in range(300)})
    archive.finished = archive.run().to_score
    archive.objects |= {"o007": ("2", 1), "new": ("1", 1)}
    del archive.objects["o100"]
    second = archive.run()
    assert sorted(archive.opened) == ["new", "o007"]
    assert second.to_score == [slice_id("new")]
    assert list(second.index.lines()) == [
        "298 objects are unchanged, 1 are new, 1 have changed; 1 of earlier runs are not in INPUT "
        "now, and their rows stay",
        "1 slices have changed in storage since they were listed; existing rows describe the "
        "earlier content: use a new OUT to score them again",
    ]


def test_a_changed_object_replaces_its_rows_and_no_other(tmp_path: Path) -> None:
    archive = Archive(tmp_path, a=("1", 2), b=("1", 1))
    archive.run()
    archive.objects["a"] = ("2", 3)
    assert archive.run().slices() == sorted(
        [*((slice_id("a", n), "2") for n in range(3)), (slice_id("b"), "1")]
    )
    files = tables.parquet_files((tmp_path / "inventory").as_uri())
    assert sum(len(table) for table in tables.read_each(files)) == 4


def test_a_slice_that_its_object_no_longer_holds_stays_only_with_a_prediction(
    tmp_path: Path,
) -> None:
    archive = Archive(tmp_path, a=("1", 3))
    archive.run()
    archive.objects["a"] = ("2", 1)
    archive.finished = [slice_id("a", 1)]
    assert archive.run().slices() == sorted([(slice_id("a", 0), "2"), (slice_id("a", 1), "1")])


def test_an_index_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    archive = Archive(tmp_path, **{f"o{n:04d}": ("1", 1) for n in range(2000)})
    whole = Archive(tmp_path / "whole", **archive.objects).run()
    look, pages = archive.look, []

    def killed(objects: Sequence[ObjectInfo]) -> pa.Table:
        pages.append(objects)
        if len(pages) == 3:
            raise KeyboardInterrupt
        return look(objects)

    archive.look = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        archive.run()
    archive.look = look  # type: ignore[method-assign]
    before = sum(map(len, pages[:2]))
    again = archive.run()
    assert len(archive.opened) == 2000 - before
    assert again.slices() == whole.slices()
    assert again.to_score == whole.to_score


def test_rows_of_a_killed_index_are_looked_into_again_where_two_runs_disagree(
    tmp_path: Path,
) -> None:
    archive = Archive(tmp_path, a=("1", 2), b=("1", 1))
    archive.run()
    # A run that has seen the new `a` was killed before it dropped the rows of the old one.
    archive.objects["a"] = ("2", 1)
    shard = archive.look(list(archive.listed())[:1])
    tables.put_private(shard, (tmp_path / "inventory").as_uri(), name="g000007-000000")
    again = archive.run()
    assert archive.opened == ["a"]
    assert again.slices() == sorted([(slice_id("a", 0), "2"), (slice_id("b"), "1")])
    assert sorted(again.to_score) == sorted([slice_id("a", 0), slice_id("b")])


def test_an_object_that_storage_did_not_give_is_read_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path, a=("1", "storage_failed"), b=("1", "corrupt"))
    archive.run()
    archive.objects["a"] = ("1", 1)
    again = archive.run()
    assert archive.opened == ["a"]
    assert sorted(again.to_score) == sorted([slice_id("a"), slice_id("b")])


def test_every_error_is_read_again_if_that_is_asked_for(tmp_path: Path) -> None:
    archive = Archive(tmp_path, a=("1", "permission_denied"), b=("1", 1))
    archive.finished = archive.run().to_score[1:]
    archive.run()
    assert archive.opened == []
    archive.run(retry_errors=True)
    assert archive.opened == ["a"]


def test_the_last_object_of_a_file_of_an_older_version_is_read_again(tmp_path: Path) -> None:
    """Such a version wrote 2,000 rows at a time, whatever archive they were of."""
    archive = Archive(tmp_path, a=("1", 1), b=("1", 3))
    older = archive.look(list(archive.listed())).slice(0, 2).replace_schema_metadata(None)
    tables.put_private(older, (tmp_path / "inventory").as_uri(), name="g000000-000000")
    again = archive.run()
    assert archive.opened == ["b"]
    assert len(again.slices()) == len(again.to_score) == len(set(again.to_score)) == 4


def test_no_more_than_the_limit_is_left_to_score(tmp_path: Path) -> None:
    run = Archive(tmp_path, a=("1", 3), b=("1", 3)).run(limit=4)
    assert len(run.to_score) == run.todo.rows == 4
    assert len(run.slices()) == 6


def test_the_first_pages_are_small_and_rows_come_in_the_order_of_the_listing(
    tmp_path: Path,
) -> None:
    archive = Archive(tmp_path, **{f"o{n:05d}": ("1", 1) for n in range(3000)})
    run = archive.run()
    assert run.to_score == [slice_id(f"o{n:05d}") for n in range(3000)]
    shards = tables.parquet_files(run.folder)
    sizes = [len(table) for table in tables.read_each(shards)]
    assert sizes == [128, 256, 512, 1024, 1080]


def test_an_error_of_the_listing_is_raised(tmp_path: Path) -> None:
    archive = Archive(tmp_path, a=("1", 1))

    def listed() -> Iterator[ObjectInfo]:
        yield ObjectInfo("a", 100, "1")
        raise InputError("no such folder", "b")

    archive.listed = listed  # type: ignore[method-assign]
    with pytest.raises(InputError, match="b: no such folder"):
        archive.run()


def test_a_large_object_ends_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PAGE_BYTES", 250)
    run = Archive(tmp_path, **{f"o{n}": ("1", 1) for n in range(7)}).run()
    assert [len(t) for t in tables.read_each(tables.parquet_files(run.folder))] == [3, 3, 1]
