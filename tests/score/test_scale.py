"""Twenty thousand slices: quick to index, and no memory in the driver that grows with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.makers import png

MANY, FEW = 20_000, 2_000

# A driver of its own, because the peak of this process would hide behind pytest's.
DRIVER = """
import json, resource, sys
from cctmn.config import ScoreConfig
from cctmn.score import run
from cctmn.score.run import Job
from tests.makers import stand_in

if __name__ == "__main__":
    settings = ScoreConfig(actors=1)
    job = Job([sys.argv[1]], out=sys.argv[2], source=stand_in(), settings=settings)
    summary = run.score(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"ok": summary.counts.ok, "peak_kib": peak}))
"""


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 2,000 and one of 20,000 tiny pictures, 40 contents in turn."""
    contents = [png(n) for n in range(40)]
    folders = []
    for count in (FEW, MANY):
        folder = tmp_path_factory.mktemp(f"slices{count}")
        for n in range(count):
            if n % 1000 == 0:
                (folder / f"{n // 1000:02d}").mkdir()
            (folder / f"{n // 1000:02d}" / f"{n}.png").write_bytes(contents[n % 40])
        folders.append(folder)
    return folders[0], folders[1]


def test_dry_run_of_twenty_thousand(slices: tuple[Path, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cctmn.cli",
        "score",
        str(slices[1]),
        "-o",
        str(tmp_path / "o"),
    ]
    began = time.monotonic()
    run = subprocess.Popen([*command, "--dry-run", "--json"], stdout=subprocess.PIPE)
    assert run.stdout is not None
    plan = json.loads(run.stdout.read())
    run.stdout.close()
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    assert plan["pending"] == MANY
    assert time.monotonic() - began < 60
    assert usage.ru_maxrss < 1 << 20  # KiB, so 1 GiB


def test_the_drivers_memory_is_flat(slices: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    peaks = {}
    for folder, count in zip(slices, (FEW, MANY), strict=True):
        done = subprocess.run(
            [sys.executable, tmp_path / "driver.py", folder, tmp_path / str(count)],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": str(REPO)},
        )
        said = json.loads(done.stdout)
        assert said["ok"] == count
        peaks[count] = said["peak_kib"]
    assert peaks[MANY] < peaks[FEW] + 60 * 1024, peaks  # 18,000 rows of 3 KiB would be 54 MiB
