"""Index INPUT while the slices that it has shown are scored.

An object that an earlier run has looked into is not opened again. What is new or changed is looked
into page by page. Each page is one file of OUT/private/inventory, so that an index that was killed
goes on where it was; after that its rows are ready to be scored.

Reads: INPUT, OUT/private/inventory. Writes: OUT/private/inventory, OUT/private/todo.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cctmn import id_set, runtime, store, tables
from cctmn.id_set import Ids, IdSet
from cctmn.read import inventory
from cctmn.read.listing import THREADS
from cctmn.reporter import Reporter, silent
from cctmn.score import known_objects, reconcile, remote_index
from cctmn.score.known_objects import KnownObjects, Unknown, Why
from cctmn.score.todo import Todo
from cctmn.store import ObjectInfo

# Objects of the first page; each page has twice as many as the one before, up to the last number.
# So the first slices can be scored soon, and ten million objects make some thousand files.
PAGE_OBJECTS: Final = (128, 8192)
# A page ends early with objects of together this size, for they are archives with many members.
PAGE_BYTES: Final = 2 << 30
# Shards that are read at a time; up to four times as many wait in memory.
SHARD_THREADS: Final = 16
# Pages of the listing that are compared with the known objects at a time.
LISTED_OBJECTS: Final = 1000
# Pages that are looked into at a time: by this process, and at most by a cluster.
PAGES_HERE: Final = 2
MOST_PAGES: Final = 64
# A person who stops a job does not want to wait for storage.
STOP_S: Final = 10.0


class Inventory:
    """The inventory of an output folder, and what one run adds to it as a new generation."""

    def __init__(self, folder: str, *, retry_errors: bool = False) -> None:
        self.folder = folder
        self._shards = tables.parquet_files(folder)
        self._generation = 1 + max(map(tables.generation, self._shards), default=-1)
        self._written = 0
        self.rows = 0
        self.known = KnownObjects(retry_errors=retry_errors)
        self._unfinished: list[str] = []
        # Objects that were looked into again, and the slices that they hold now.
        self._renewed: list[Ids] = []
        self._renewed_slices: list[Ids] = []
        # Shards with slices that the first pass over them has left without a prediction.
        self._with_left: set[str] = set()
        self._removed: set[str] = set()

    def read(self, *, finished: IdSet) -> None:
        """Read what earlier runs have written."""
        columns = ["slice_id", *known_objects.COLUMNS]
        shards = tables.read_each(self._shards, columns, threads=SHARD_THREADS)
        for shard, (uri, table) in enumerate(zip(self._shards, shards, strict=True)):
            self.known.add(table, shard=shard)
            self.rows += len(table)
            if len(reconcile.without(table, finished)):
                self._unfinished.append(uri)
        self.known.close()

    def unfinished(self, *, finished: IdSet) -> Iterator[pa.Table]:
        """Yield the rows of earlier runs without a prediction.

        Those of objects that will be looked into again are left out.
        """
        incomplete = IdSet(self.known.incomplete())
        for table in tables.read_each(self._unfinished, threads=SHARD_THREADS):
            left = reconcile.without(table, finished)
            if len(incomplete):
                again = incomplete.contains(id_set.of_names(left["uri"].to_pylist()))
                left = left.filter(pa.array(~again))
            yield left

    def add(self, table: pa.Table, *, renewed: Sequence[str]) -> None:
        """Write a shard; `renewed` are the URIs of its objects that older shards may have too."""
        name = f"g{self._generation:06d}-{self._written:06d}"
        tables.put_private(table, self.folder, name=name)
        self._written += 1
        self.rows += len(table)
        if renewed:
            self._renewed.append(id_set.of_names(renewed))
            rows = table.filter(pc.is_in(table["uri"], value_set=pa.array(renewed, pa.string())))
            self._renewed_slices.append(id_set.of_hex(rows["slice_id"]))

    def objects_left(self, *, finished: IdSet) -> list[str]:
        """Return the URIs of all objects with a slice without a prediction.

        What is added after this is a new generation, whose rows replace theirs.
        """
        self.drop_replaced(finished=finished)
        uris: dict[str, None] = {}
        files = tables.parquet_files(self.folder)
        for file, table in zip(files, tables.read_each(files, ["slice_id", "uri"]), strict=True):
            left = reconcile.without(table, finished)
            if len(left):
                self._with_left.add(file)
                uris |= dict.fromkeys(left["uri"].to_pylist())
        self._generation, self._written = self._generation + 1, 0
        return list(uris)

    def drop_replaced(self, *, finished: IdSet) -> None:
        """Remove the rows of renewed objects from the older shards.

        A slice that its object no longer holds stays if it has a prediction.
        """
        if not self._renewed:
            return
        renewed = id_set.concatenated(self._renewed)
        objects, slices = IdSet(renewed), IdSet(id_set.concatenated(self._renewed_slices))
        older = {self._shards[shard] for shard in self.known.shards_of(renewed)}
        for uri in sorted((older | self._with_left) - self._removed):
            [table] = tables.read_each([uri])
            ids = id_set.of_hex(table["slice_id"])
            is_old = objects.contains(id_set.of_names(table["uri"].to_pylist()))
            is_kept = ~is_old | (finished.contains(ids) & ~slices.contains(ids))
            if is_kept.all():
                continue
            if is_kept.any():
                kept = table.filter(pa.array(is_kept))
                tables.put_private(kept, self.folder, name=_name(uri))
            else:
                store.delete(uri)
                self._removed.add(uri)


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[1].removesuffix(".parquet")


class Index:
    """Lists INPUT and looks into its objects, in a thread, while the `with` block runs.

    Rows without a prediction go to `todo`. An error of the thread is raised by `wait` and at the
    end of the block.
    """

    def __init__(
        self,
        objects: Iterable[ObjectInfo],
        *,
        known: Inventory,
        todo: Todo,
        finished: IdSet,
        key: bytes,
        report: Reporter = silent,
    ) -> None:
        self._objects, self._inventory, self._todo = objects, known, todo
        self._finished, self._key, self._report = finished, key, report
        # Pages at a time, and how one is looked into; a cluster can do more than this process.
        self.pages = PAGES_HERE
        self.look: Callable[[Sequence[ObjectInfo]], pa.Table] = self._look_here
        self.changed_slices = 0  # finished slices whose object was replaced
        self._listed = 0
        self._opened: Counter[Why] = Counter()
        self._stop = threading.Event()
        self._moved = threading.Condition()
        self._is_done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def __enter__(self) -> Index:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self.check()

    def stop(self) -> None:
        """End the thread; what it is looking into is not waited for for long."""
        self._stop.set()
        self._thread.join(STOP_S)

    @property
    def is_done(self) -> bool:
        """Whether the whole INPUT was seen."""
        return self._is_done

    def wait(self, *, rows: int | None = 1, timeout_s: float | None = None) -> None:
        """Wait until so many rows are there to be taken (None: for all), or the index is done.

        Raises the error of the thread.
        """
        with self._moved:
            self._moved.wait_for(
                lambda: self._is_done or (rows is not None and self._todo.waiting() >= rows),
                timeout=timeout_s,
            )
        self.check()

    def check(self) -> None:
        """Raise the error of the thread, if there is one."""
        if self._error is not None:
            raise self._error

    def use_cluster(self, available: runtime.Resources, *, access: store.S3Access) -> None:
        """Let the tasks of a cluster look into the objects from now on."""
        self.look = remote_index.on_cluster(key=self._key, access=access)
        self.pages = max(PAGES_HERE, min(MOST_PAGES, remote_index.tasks(available)))

    def lines(self) -> Iterator[str]:
        """Yield what a user should know about the objects."""
        known = self._inventory.known
        if len(known):
            counts = Counter(self._opened)
            unchanged = self._listed - sum(counts.values())
            text = f"{unchanged:,} objects are unchanged, {counts[Why.NEW]:,} are new"
            if counts[Why.CHANGED]:
                text += f", {counts[Why.CHANGED]:,} have changed"
            if counts[Why.INCOMPLETE]:
                text += f", {counts[Why.INCOMPLETE]:,} were read again"
            if missing := known.not_listed():
                text += f"; {missing:,} of earlier runs are not in INPUT now, and their rows stay"
            yield text
        if self.changed_slices:
            yield (
                f"{self.changed_slices:,} slices have changed in storage since they were listed; "
                "existing rows describe the earlier content: use a new OUT to score them again"
            )

    def _run(self) -> None:
        try:
            self._index()
        except BaseException as error:  # noqa: BLE001  (raised in the main thread)
            self._error = error
        finally:
            with self._moved:
                self._is_done = True
                self._moved.notify_all()

    def _index(self) -> None:
        for table in self._inventory.unfinished(finished=self._finished):
            self._add_todo(table)
        for page, table in self._looked_into():
            if self._stop.is_set():
                return
            self._opened.update(one.why for one in page)
            self._add_page(page, table)
            self._report(
                f"indexed {self._listed:,} objects, {self._inventory.rows:,} slices", transient=True
            )

    def _look_here(self, objects: Sequence[ObjectInfo]) -> pa.Table:
        wanted = itertools.takewhile(lambda _: not self._stop.is_set(), objects)
        return inventory.look(wanted, key=self._key, threads=THREADS // PAGES_HERE)

    def _add_page(self, page: Sequence[Unknown], table: pa.Table) -> None:
        renewed = [one.info.uri for one in page if one.why is not Why.NEW]
        self._inventory.add(table, renewed=renewed)
        if changed := [one.info.uri for one in page if one.why is Why.CHANGED]:
            is_changed = pc.is_in(table["uri"], value_set=pa.array(changed, pa.string()))
            ids = id_set.of_hex(table.filter(is_changed)["slice_id"])
            self.changed_slices += int(self._finished.contains(ids).sum())
            # Their earlier rows may have been taken; what is missing is scored at the end.
            table = table.filter(pc.invert(is_changed))
        self._add_todo(reconcile.without(table, self._finished))

    def _add_todo(self, rows: pa.Table) -> None:
        self._todo.add(rows)
        with self._moved:
            self._moved.notify_all()

    def _looked_into(self) -> Iterator[tuple[list[Unknown], pa.Table]]:
        """Yield the pages in their order with their rows; several are looked into at a time."""
        pending: deque[tuple[list[Unknown], Future[pa.Table]]] = deque()
        with ThreadPoolExecutor(MOST_PAGES, thread_name_prefix="index") as pool:
            try:
                for page in self._pages():
                    if self._stop.is_set():
                        return
                    objects = [one.info for one in page]
                    pending.append((page, pool.submit(self.look, objects)))
                    while len(pending) >= min(self.pages, MOST_PAGES):
                        first, future = pending.popleft()
                        yield first, future.result()
                for first, future in pending:
                    yield first, future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    def _pages(self) -> Iterator[list[Unknown]]:
        page: list[Unknown] = []
        size, (limit, most) = 0, PAGE_OBJECTS
        for listed in _batched(self._objects):
            if self._stop.is_set():
                return
            self._listed += len(listed)
            for one in self._inventory.known.unknown(listed):
                page.append(one)
                size += one.info.size
                if len(page) >= limit or size >= PAGE_BYTES:
                    yield page
                    page, size, limit = [], 0, min(2 * limit, most)
        if page:
            yield page


def _batched(objects: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    iterator = iter(objects)
    while listed := list(itertools.islice(iterator, LISTED_OBJECTS)):
        yield listed
