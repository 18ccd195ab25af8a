"""Progress of a scoring run, counted from the files that are committed.

The line therefore shows what a kill would leave, for example
`412,300/1,204,118  34 %  812/s  errors 0.21 %  eta 16m`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from types import TracebackType

from cctmn import store, tables
from cctmn.errors import CctmnError, ResumeError, state_of
from cctmn.reporter import Reporter, duration


class Progress:
    """Counts the rows in the folder, in a thread, while the `with` block runs, and reports them."""

    def __init__(self, folder: str, *, total: int, report: Reporter) -> None:
        self._folder, self._total, self._report = folder, total, report
        self._seen = set(tables.parquet_files(folder))
        self._rows = self._passed_over = self._errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
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
            with contextlib.suppress(
                CctmnError, OSError
            ):  # storage may fail for a moment: look again later
                self._look()
            self._report(self._line(), transient=True)

    def _look(self) -> None:
        for uri in tables.parquet_files(self._folder):
            if uri in self._seen:
                continue
            try:
                codes = tables.read(uri, ["error_code"])["error_code"].to_pylist()
            except ResumeError:
                continue  # a file that is being written
            self._seen.add(uri)
            self._rows += len(codes)
            states = Counter(map(state_of, codes))
            self._passed_over += states["passed_over"]
            self._errors += states["error"]

    def _line(self) -> str:
        rate = self._rows / max(1e-9, time.monotonic() - self._began)
        errors = self._errors / max(1, self._rows - self._passed_over)
        eta = duration((self._total - self._rows) / rate) if self._rows else "?"
        share = self._rows / self._total
        passed_over = f"passed over {self._passed_over:,}  " if self._passed_over else ""
        return (
            f"{self._rows:,}/{self._total:,}  {100 * share:.0f} %  {rate:.3g}/s  "
            f"{passed_over}errors {100 * errors:.2f} %  eta {eta}"
        )
