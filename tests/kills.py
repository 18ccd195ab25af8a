"""Kill a scoring job at random moments, resume it until it is done, and compare the rows.

    python -m tests.kills --kills 30 --slices 300 --seed 1

In turn the driver, a scorer, a reader, a decoder, the raylet and the GCS of Ray are killed. A job
that does not end by itself after that is killed as a whole, as a person would do it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import psutil

from cctmn import tables
from cctmn.phantom import layouts
from tests.score.conftest import predictions, results

VICTIMS = {
    "driver": "cctmn.cli score",
    "scorer": "_ScoreBlock",
    "reader": "_prepare_block",
    "decoder": "cctmn.score.decoder",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
}
PATIENCE_S = 300.0  # for a job to end by itself after a kill


def start(study: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cctmn.cli", "score", str(study), "-o", str(out)]
    command += ["-m", "cctmn:demo", "-q", "--set", "block_rows=4", "--set", "commit_rows=12"]
    return subprocess.Popen(command, start_new_session=True)


def processes_of(run: subprocess.Popen[bytes], word: str) -> list[psutil.Process]:
    """The processes that the run has started whose command line has the word; itself included."""
    try:
        top = psutil.Process(run.pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    chosen = []
    for process in family:
        try:
            if word in " ".join(process.cmdline()):
                chosen.append(process)
        except psutil.Error:
            continue
    return chosen


def find(
    run: subprocess.Popen[bytes], word: str, *, out: Path, pause_s: float
) -> list[psutil.Process]:
    """The processes of that word, some time after the run has committed; none if it ends before."""
    held = len(list(out.glob("predictions/*.parquet")))
    while run.poll() is None and len(list(out.glob("predictions/*.parquet"))) <= held:
        time.sleep(0.05)
    time.sleep(pause_s)
    while run.poll() is None:
        if victims := processes_of(run, word):
            return victims
        time.sleep(0.01)
    return []


def end(run: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the run, and wait until all of it is gone."""
    try:
        family = psutil.Process(run.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.wait()
    psutil.wait_procs(family, timeout=30)


def rows_in(out: Path) -> list[str]:
    return [row["slice_id"] for row in tables.rows((out / "predictions").as_uri())]


@click.command()
@click.option("--kills", default=30, show_default=True)
@click.option("--slices", default=300, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(kills: int, slices: int, seed: int) -> None:
    """Count rows that kills have lost or doubled."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        study = folder / "study.zip"
        layouts.write_archive(study, patients=slices // 10, slices=10, seed=seed)
        whole = folder / "whole"
        assert start(study, whole).wait() == 0
        expected = {name: results(row) for name, row in predictions(whole).items()}
        done, jobs, struck = 0, 0, Counter[str]()
        while done < kills:
            out = folder / f"out{jobs}"
            jobs += 1
            code = None
            while code != 0:
                run = start(study, out)
                if done < kills:
                    kind = list(VICTIMS)[done % len(VICTIMS)]
                    if victims := find(run, VICTIMS[kind], out=out, pause_s=rng.uniform(0, 4)):
                        rng.choice(victims).kill()
                        struck[kind] += 1
                        done += 1
                try:
                    code = run.wait(timeout=PATIENCE_S if done < kills else 600)
                except subprocess.TimeoutExpired:
                    code = None
                end(run)
                # two rows of a slice are removed when the job goes on: they are counted at its end
                click.echo(f"kill {done} of {kills}: exit {code}, {len(rows_in(out))} rows")
            ids = rows_in(out)
            assert len(ids) == len(set(ids)), "a slice has two rows"
            actual = {name: results(row) for name, row in predictions(out).items()}
            assert actual == expected, "rows differ from those of the unbroken run"
        click.echo(
            f"{jobs} jobs of {slices} slices, kills {dict(struck)}: 0 lost, 0 doubled, equal"
        )


if __name__ == "__main__":
    main()
