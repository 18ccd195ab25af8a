"""The rows of the inventory that a run has to score, in files that Ray Data reads.

The index adds to them in one thread while another scores those that it has taken.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cctmn import store, tables
from cctmn.id_set import IdSet
from cctmn.parallel import map_in_order
from cctmn.score import reconcile


@dataclass(frozen=True)
class Pending:
    """Files of rows to score, by URI, and the number of rows in them."""

    files: Sequence[str] = ()
    rows: int = 0


class Todo:
    """The files in a folder, which is emptied first; `limit` is the most rows of the whole run."""

    def __init__(self, folder: str, *, limit: int | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._lock = threading.Lock()
        self._waiting = Pending()
        self._written = 0
        self.rows = 0  # of the whole run until now
        self.clear()

    def add(self, rows: pa.Table) -> None:
        """Write rows to score, up to the limit."""
        with self._lock:
            rows = rows if self._limit is None else rows.slice(0, self._limit - self.rows)
            if not len(rows):
                return
            uri = self._write(rows)
            self._waiting = Pending((*self._waiting.files, uri), self._waiting.rows + len(rows))
            self.rows += len(rows)

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self.rows >= self._limit

    def waiting(self) -> int:
        """Return the number of rows that nobody has taken."""
        return self._waiting.rows

    def take(self) -> Pending:
        """Return all rows that nobody has taken yet."""
        with self._lock:
            taken, self._waiting = self._waiting, Pending()
            return taken

    def left_of(self, part: Pending, *, finished: IdSet) -> Pending:
        """Return the rows of a part that have no prediction yet, in new files."""
        files, count = [], 0
        with self._lock:
            for table in tables.read_each(part.files):
                left = reconcile.without(table, finished)
                if len(left):
                    files.append(self._write(left))
                    count += len(left)
        return Pending(files, count)

    def clear(self) -> None:
        """Remove all files."""
        files = tables.parquet_files(self._folder)
        for _ in map_in_order(store.delete, files, threads=tables.THREADS):
            pass

    def _write(self, rows: pa.Table) -> str:
        uri = tables.put_private(rows, self._folder, name=f"{self._written:06d}")
        self._written += 1
        return uri
