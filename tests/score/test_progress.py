"""What a person sees while a job runs."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn.score import progress
from cctmn.score.progress import Progress
from cctmn.store import local
from tests.conftest import RecordingReporter


def commit(folder: Path, name: str, codes: list[str]) -> None:
    pq.write_table(pa.table({"error_code": codes}), folder / f"{name}.parquet")


def test_progress_counts_committed_slices_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: RecordingReporter
) -> None:
    quick = dataclasses.replace(local.traits, list_period_s=0.02)
    monkeypatch.setattr(local, "traits", quick)
    commit(tmp_path, "earlier", [""] * 50)
    with Progress(tmp_path.as_uri(), total=2000, report=reporter):
        time.sleep(0.1)
        commit(tmp_path, "a", [""] * 999 + ["truncated"])
        (tmp_path / "b.parquet").write_bytes(b"PAR1 in the making")
        time.sleep(0.3)
    assert all(reporter.transient)
    assert re.fullmatch(r"0/2,000  0 %  0/s  errors 0\.00 %  eta \?", reporter.lines[0])
    line = r"1,000/2,000  50 %  [\d.e+]+/s  errors 0\.10 %  eta \d+s"
    assert re.fullmatch(line, reporter.lines[-1]), reporter.lines[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (45, "45s"), (60, "1m"), (16 * 60 + 20, "16m"), (11100, "3h05m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
