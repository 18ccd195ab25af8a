"""jobs/gpu_check.py, here with the CPU in the place of a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import covered
from tests.conftest import REPO
from tests.makers import png
from tests.processes import end_with_the_test_run

SLICES = 3


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/gpu_check.py", *map(str, options)]
    return subprocess.run(
        command,
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=end_with_the_test_run,
    )


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["phantoms", "folder"])
def test_predictions_are_compared_and_rates_measured(tmp_path: Path, own: bool) -> None:
    for n in range(SLICES):
        (tmp_path / f"{n}.png").write_bytes(png(n, side=512))
    options = ["--folder", tmp_path] if own else ["--slices", SLICES]
    done = run("--device", "cpu", "--largest", 2, "--json", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [line["name"] for line in results["parity"]] == [
        "float32 ieee, batch 1",
        "float32 ieee, batch 16",
        "float32 ieee, batch 16, shuffled",
    ]
    assert all(line["same_class"] == f"{SLICES}/{SLICES}" for line in results["parity"])
    assert all(line["median"] < 1e-3 for line in results["parity"])
    assert [line["batch"] for line in results["rates"]] == [1, 2]
    assert all(line["slices_per_s"] > 0 for line in results["rates"])


def test_a_folder_without_slices_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no slice")
    done = run("--device", "cpu", "--folder", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: has fewer than two slices that can be scored\n"


def test_the_time_of_kernels_counts_once_where_they_overlap() -> None:
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([]) == 0
