"""Time of ten times as much work against the work: more than ten times is worse than linear."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison

SLICES = 2_000  # of the smaller run


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds of `score --dry-run` per 1,000 slices."""
    from cctmn.phantom import layouts

    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        layouts.write_slices(here / "made", count=20, seed=1)
        pictures = [path.read_bytes() for path in sorted((here / "made").glob("*.png"))]
        seconds: dict[int, float] = {}
        # The first run warms up: the next of its size takes its place.
        for number in (SLICES, SLICES, 10 * SLICES):
            folder = here / str(number)
            folder.mkdir(exist_ok=True)
            for n in range(number):
                (folder / f"{n}.png").write_bytes(pictures[n % len(pictures)])
            command = [sys.executable, "-m", "cctmn.cli", "score", str(folder), "-q", "--dry-run"]
            began = time.monotonic()
            for _ in range(max(1, repeats // 4)):
                subprocess.run([*command, "-o", str(here / "out")], check=True, capture_output=True)
            seconds[number] = (time.monotonic() - began) / number * 1000
    small, large = seconds.values()
    yield Comparison("dry run, per 1,000 slices of 20,000 against 2,000", large, small, target=0.95)
