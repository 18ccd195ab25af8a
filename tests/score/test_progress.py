"""What a person sees while a job runs."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import store, tables
from cctmn.score import commit as commits
from cctmn.score import progress
from cctmn.score.progress import Pace, Progress
from cctmn.store import local
from tests.conftest import RecordingReporter


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def commit(folder: Path, name: str, codes: list[str]) -> None:
    pq.write_table(pa.table({"error_code": codes}), folder / f"{name}.parquet")


def paced(clock: Clock, times: Iterable[float], *, rows: int) -> Pace:
    """A pace after commits of so many rows at these times."""
    pace = Pace(clock)
    for at in times:
        clock.now = at
        pace.add(rows)
    return pace


def test_progress_counts_committed_slices_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: RecordingReporter
) -> None:
    quick = dataclasses.replace(local.traits, list_period_s=0.02)
    monkeypatch.setattr(local, "traits", quick)
    commit(tmp_path, "earlier", [""] * 50)
    with Progress(tmp_path.as_uri(), total=lambda: 2000, report=reporter):
        time.sleep(0.1)
        commit(tmp_path, "a", [""] * 999 + ["truncated"])
        (tmp_path / "b.parquet").write_bytes(b"PAR1 in the making")
        time.sleep(0.3)
    assert all(reporter.transient)
    assert reporter.lines[0] == "0/2,000  starting workers"
    assert reporter.lines[-1] == "1,000/2,000  50 %  errors 0.10 %  eta ?"


def test_the_line_has_rate_and_eta_after_the_second_commit(
    tmp_path: Path, reporter: RecordingReporter
) -> None:
    clock = Clock()
    watched = Progress(tmp_path.as_uri(), total=lambda: 400, report=reporter, clock=clock)
    for name in "abc":
        commit(tmp_path, name, [""] * 100)
        watched.look()
        clock.now += 10
    assert reporter.lines[-1] == "300/400  75 %  10/s  errors 0.00 %  eta 10s"


def test_the_line_says_what_the_workers_do_until_the_first_commit(
    tmp_path: Path, reporter: RecordingReporter
) -> None:
    stages = iter(["starting workers", "loading the model"])
    watched = Progress(
        tmp_path.as_uri(),
        total=lambda: 9,
        report=reporter,
        stage=lambda: next(stages),
        clock=Clock(),
    )
    watched.look()
    watched.look()
    assert reporter.lines == ["0/9  starting workers", "0/9  loading the model"]


def test_while_the_index_runs_the_line_has_no_time_of_the_end(
    tmp_path: Path, reporter: RecordingReporter
) -> None:
    clock, totals, final = Clock(), iter([400, 800, 800]), iter([False, False, True])
    watched = Progress(
        tmp_path.as_uri(),
        total=lambda: next(totals),
        is_final=lambda: next(final),
        report=reporter,
        clock=clock,
    )
    for name in "abc":
        commit(tmp_path, name, [""] * 100)
        watched.look()
        clock.now += 10
    assert reporter.lines == [
        "100/400 indexed so far  errors 0.00 %",
        "200/800 indexed so far  10/s  errors 0.00 %",
        "300/800  38 %  10/s  errors 0.00 %  eta 50s",
    ]


def test_a_look_costs_one_listing_and_one_small_read_of_each_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: RecordingReporter
) -> None:
    reads: list[int | None] = []
    listed: list[str] = []
    read_range, sizes = store.read_range, progress.tables.sizes

    def read(uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
        reads.append(length)
        return read_range(uri, start=start, length=length, etag=etag)

    def listing(folder: str) -> dict[str, int]:
        listed.append(folder)
        return sizes(folder)

    watched = Progress(tmp_path.as_uri(), total=lambda: 8000, report=reporter, clock=Clock())
    monkeypatch.setattr(store, "read_range", read)
    monkeypatch.setattr(progress.tables, "sizes", listing)
    monkeypatch.delattr(progress.tables, "read")
    stamp = commits.Stamp.of(fingerprint="f", key=b"k")
    for number in range(2):
        ids = [f"{number}-{i:0100d}" for i in range(4000)]
        rows = pa.table({"slice_id": ids, "error_code": ["truncated"] + [""] * 3999})
        commits.write(rows, folder=tmp_path.as_uri(), schema=rows.schema, stamp=stamp)
    watched.look()
    watched.look()
    assert len(listed) == 2
    assert len(reads) == 2
    assert max(length or 0 for length in reads) <= tables._FOOTER_BYTES
    assert reporter.lines[-1].startswith("8,000/8,000  100 %  errors 0.03 %")


def test_the_time_before_the_first_commit_does_not_count() -> None:
    pace = paced(Clock(), (1000, 1005, 1010), rows=20)
    assert pace.rate == pytest.approx(4)
    assert pace.eta_s(84) == pytest.approx(21)


def test_the_rate_is_that_of_the_last_minute() -> None:
    slow, fast = range(0, 600, 60), range(600, 690, 10)
    pace = paced(Clock(), itertools.chain(slow, fast), rows=30)
    assert pace.rate == pytest.approx(3)


def test_commits_further_apart_than_a_minute_still_give_a_rate() -> None:
    clock = Clock()
    pace = paced(clock, (0, 90, 180), rows=128)
    clock.now = 260
    assert pace.rate == pytest.approx(128 / 90)


@pytest.mark.parametrize("between", [0.0, 1.0, 15.0])
def test_the_eta_of_two_scorers_is_near_the_truth_from_the_second_round_on(between: float) -> None:
    clock = Clock()
    rounds = [30.0 * n for n in range(3)]
    pace = paced(clock, sorted([*rounds, *(at + between for at in rounds)]), rows=16)
    assert pace.eta_s(320) == pytest.approx(300, rel=0.25)


def test_no_rate_is_told_from_one_commit_or_from_a_moment() -> None:
    clock = Clock()
    assert Pace(clock).rate is None
    assert paced(clock, (5,), rows=16).rate is None
    assert paced(clock, (5, 5.1), rows=16).rate is None


def test_the_rate_falls_when_commits_stop() -> None:
    clock = Clock()
    pace = paced(clock, (0, 10, 20, 30), rows=10)
    assert pace.rate == pytest.approx(1)
    clock.now = 70
    rate = pace.rate
    assert rate is not None
    assert rate < 0.6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (45, "45s"), (60, "1m"), (16 * 60 + 20, "16m"), (11100, "3h05m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


class _Terminal:
    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    """Put a terminal of 50 columns in the place of stderr; pytest would undo that in a fixture."""
    shown = _Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return shown


def cells(text: str) -> str:
    """What a terminal shows of a line with codes."""
    return re.sub(r"\x1b\[[\d;]*[mK]", "", text).replace("\r", "")


def test_a_terminal_shows_a_coloured_bar_and_the_line_cut_to_its_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cctmn.cli.common import BAR_COLUMNS, TerminalReporter

    terminal = use_terminal(monkeypatch)
    TerminalReporter(quiet=False).progress("25/100  25 %  " + "x" * 90, fraction=0.25)
    bar, _, line = cells(terminal.text).partition(" ")
    assert "\x1b[32m" in terminal.text
    assert terminal.text.count("█") == BAR_COLUMNS // 4
    assert len(bar) == BAR_COLUMNS
    assert line.startswith("25/100")
    assert len(cells(terminal.text)) == 49


def test_no_color_leaves_the_bar_without_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cctmn.cli.common import TerminalReporter

    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    TerminalReporter(quiet=False).progress("half", fraction=0.5)
    assert "\x1b[3" not in terminal.text


def test_a_transient_line_is_cut_to_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    from cctmn.cli.common import TerminalReporter

    terminal = use_terminal(monkeypatch)
    TerminalReporter(quiet=False)("x" * 200, transient=True)
    assert len(cells(terminal.text)) == 49


def test_quiet_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from cctmn.cli.common import TerminalReporter

    terminal = use_terminal(monkeypatch)
    TerminalReporter(quiet=True).progress("half", fraction=0.5)
    assert terminal.text == ""
