"""Progress of a scoring run, counted from the files that are committed.

The line therefore shows what a kill would leave, for example
`412,300/1,204,118  34 %  812/s  errors 0.21 %  eta 16m`. Before the first file it says what the
workers do: `0/1,204,118  loading the model`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import store, tables
from cctmn.errors import CctmnError, ResumeError, state_of
from cctmn.reporter import Reporter, duration, report_progress
from cctmn.score import commit

WINDOW_S: Final = 60.0  # the rate is that of the last minute
# Scorers that start together commit together, so a rate from less time is many times too high.
MEASURED_S: Final = 3.0
STARTING: Final = "starting workers"


class Pace:
    """The rate of the last minute, from the times of commits. The first commit starts the clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows = 0
        # Times of commits, each with the rows until then: those of the window, and one before it.
        self._commits: deque[tuple[float, int]] = deque()

    def add(self, rows: int) -> None:
        """Count rows that were committed just now."""
        self._rows += rows
        self._commits.append((self._clock(), self._rows))
        self._forget()

    @property
    def rate(self) -> float | None:
        """Rows per second, None while that cannot be told."""
        self._forget()
        if len(self._commits) < 2:
            return None
        (began, before), (last, after) = self._commits[0], self._commits[-1]
        times = [at for at, _ in self._commits]
        pause_s = max(b - a for a, b in itertools.pairwise(times))
        # From commit to commit. A commit that is late by more than the longest pause slows it.
        elapsed_s = max(last - began, self._clock() - began - pause_s)
        if max(elapsed_s, self._clock() - began) < MEASURED_S:
            return None
        return (after - before) / max(elapsed_s, MEASURED_S)

    def eta_s(self, left: int) -> float | None:
        """Seconds until so many more rows are committed, None while that cannot be told."""
        rate = self.rate
        return left / rate if rate else None

    def _forget(self) -> None:
        begin = self._clock() - WINDOW_S
        while len(self._commits) > 2 and self._commits[1][0] <= begin:
            self._commits.popleft()


class Progress:
    """Counts the rows in the folder, in a thread, while the `with` block runs, and reports them.

    `stage` is asked what the workers do until the first rows are there, and `is_final` whether the
    total stays as it is.
    """

    def __init__(
        self,
        folder: str,
        *,
        total: Callable[[], int],
        report: Reporter,
        is_final: Callable[[], bool] = lambda: True,
        stage: Callable[[], str] = lambda: STARTING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._report, self._stage = folder, report, stage
        self._total, self._is_final = total, is_final
        self._seen = set(tables.sizes(folder))
        self._pace = Pace(clock)
        self._rows = self._passed_over = self._errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        period_s = store.traits(self._folder).list_period_s
        while not self._stop.wait(period_s):
            self.look()

    def look(self) -> None:
        """Count the files that are new, by one listing and one small read of each, and report."""
        with contextlib.suppress(CctmnError, OSError):  # storage may fail for a moment
            self._count()
        total = self._total()
        report_progress(self._report, self._line(total), fraction=self._rows / total)

    def _count(self) -> None:
        before = self._rows
        try:
            for uri, size in tables.sizes(self._folder).items():
                if uri in self._seen or (codes := _codes(uri, size)) is None:
                    continue
                self._seen.add(uri)
                self._rows += sum(codes.values())
                for code, number in codes.items():
                    state = state_of(code)
                    self._passed_over += number * (state == "passed_over")
                    self._errors += number * (state == "error")
        finally:
            if self._rows > before:
                self._pace.add(self._rows - before)

    def _line(self, total: int) -> str:
        is_final = self._is_final()
        count = f"{self._rows:,}/{total:,}" + ("" if is_final else " indexed so far")
        if not self._rows:
            return f"{count}  {self._stage()}"
        rate, eta_s = self._pace.rate, self._pace.eta_s(total - self._rows)
        errors = self._errors / max(1, self._rows - self._passed_over)
        parts = [
            count,
            f"{100 * self._rows / total:.0f} %" if is_final else "",
            "" if rate is None else f"{rate:.3g}/s",
            f"passed over {self._passed_over:,}" if self._passed_over else "",
            f"errors {100 * errors:.2f} %",
            f"eta {'?' if eta_s is None else duration(eta_s)}" if is_final else "",
        ]
        return "  ".join(part for part in parts if part)


def _codes(uri: str, size: int) -> Mapping[str, int] | None:
    """Return the number of rows by error code; None of a file that is being written."""
    end = tables.file_end(uri, size)
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        footer = pq.read_metadata(io.BytesIO(end))
        if (codes := commit.codes(footer.metadata or {})) is not None:
            return codes
    try:  # of an older version, which says nothing of its codes
        return Counter(tables.read(uri, ["error_code"])["error_code"].to_pylist())
    except ResumeError:
        return None
