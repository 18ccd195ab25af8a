"""List the objects of every INPUT: files, folders, globs, S3 prefixes, archives and tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from cctmn import store
from cctmn.reporter import Reporter, silent
from cctmn.store import ObjectInfo
from cctmn.user_table import is_table, read_user_table

# Objects that are looked up or probed at a time: latency bounds that work, not bandwidth.
THREADS: Final = 16

T = TypeVar("T")
R = TypeVar("R")


def list_inputs(
    inputs: Sequence[str], *, root: str | None = None, report: Reporter = silent
) -> Iterator[ObjectInfo]:
    """Yield every object of the INPUTs in order. An object that is named twice comes once.

    Relative names in a table are below `root`, or below the table's own folder. A name without an
    object is yielded with the code `not_found`. Raises InputError for an INPUT that does not exist,
    DataError for a table that cannot be read.
    """
    seen: set[str] = set()
    # A folder names each object once, so that its names need not be kept.
    may_repeat = len(inputs) > 1 or any(is_table(text) for text in inputs)
    repeats = 0
    for text in inputs:
        for info in _list_table(text, root) if is_table(text) else store.list_objects(text):
            if info.uri in seen:
                repeats += 1
                continue
            if may_repeat:
                seen.add(info.uri)
            yield info
    if repeats:
        report(f"{repeats:,} names of INPUT are repetitions; each object is scored once")


def _list_table(text: str, root: str | None) -> Iterator[ObjectInfo]:
    base = root or store.parent(text)

    def look_up(name: str) -> list[ObjectInfo]:
        uri = store.below(base, name)
        try:
            info = store.look_up(uri)
        except (OSError, ValueError):  # a name that no file can have
            info = None
        return [info or ObjectInfo(uri, 0, "", "not_found")]

    # Each row costs a request, so several are in flight.
    for objects in map_in_order(look_up, read_user_table(text).slices(), threads=THREADS):
        yield from objects


def map_in_order(
    work: Callable[[T], list[R]], items: Iterable[T], *, threads: int
) -> Iterator[list[R]]:
    """Yield the results of `work` in the order of the items, computed by a pool of threads.

    At most four results per thread are computed ahead, so that the memory is bounded.
    """
    pending: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
