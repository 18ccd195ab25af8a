"""Score one folder of every bad input beside good slices, and report memory, time and rows.

    python -m tests.hostile --good 200

The bad inputs are those of `tests/score/test_bad_inputs.py`, and those of the reference material
where it is present. Memory is that of a process alone, without what it shares with others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import psutil

from cctmn import tables
from tests.conftest import SHARED
from tests.makers import dicom
from tests.score.test_bad_inputs import BAD

LIMIT_BYTES = 2e9
LIMIT_S = 60.0
FOLDERS = ("data/corpus", "cases/imaging", "cases/reliability")
KINDS = {
    "cctmn.score.decoder": "decoder",
    "cctmn.cli": "driver",
    "_ScoreBlock": "scorer",
    "_prepare_block": "reader",
    "_commit_blocks": "writer",
}


def make(folder: Path, *, good: int) -> None:
    for n in range(good):
        (folder / f"good{n:03d}.dcm").write_bytes(dicom(n))
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    for name in FOLDERS:
        if (SHARED / name).is_dir():
            shutil.copytree(SHARED / name, folder / name, copy_function=shutil.copyfile)


def sample(run: subprocess.Popen[bytes], peaks: dict[str, int]) -> None:
    """Raise the peak of each kind of process to its present private memory."""
    try:
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            line, memory = " ".join(process.cmdline()), process.memory_info()
        except psutil.Error:
            continue
        for word, kind in KINDS.items():
            if word in line:
                peaks[kind] = max(peaks.get(kind, 0), memory.rss - memory.shared)
                break


@click.command()
@click.option("--good", default=200, show_default=True, help="Number of good slices.")
def main(good: int) -> None:
    """Check that every good slice is scored, within the limits of memory and time."""
    with tempfile.TemporaryDirectory() as made:
        folder, out = Path(made) / "in", Path(made) / "out"
        folder.mkdir()
        make(folder, good=good)
        command = [sys.executable, "-m", "cctmn.cli", "score", str(folder), "-o", str(out)]
        command += ["-m", "cctmn:demo", "-q", "--set", "max_error_rate=1"]
        began, peaks = time.monotonic(), dict[str, int]()
        run = subprocess.Popen(command, env=os.environ)
        while run.poll() is None:
            sample(run, peaks)
            time.sleep(0.1)
        elapsed = time.monotonic() - began
        rows = {row["slice_id"]: row for row in tables.rows((out / "predictions").as_uri())}
        scored, listed = 0, set[str]()
        for table in tables.inventory((out / "private" / "inventory").as_uri()):
            for row in table.to_pylist():
                code = rows[row["slice_id"]]["error_code"]
                listed.add(row["uri"])
                scored += "/in/good" in row["uri"] and not code
        codes = Counter(row["error_code"] or "scored" for row in rows.values())
        files = sum(path.is_file() for path in folder.rglob("*"))
        slowest = max(row["t_decode_ms"] for row in rows.values()) / 1e3
    click.echo(f"exit {run.returncode} after {elapsed:.0f} s, {files} files, {len(rows)} rows")
    click.echo(", ".join(f"{code} {n}" for code, n in codes.most_common()))
    click.echo(", ".join(f"{kind} {peak / 1e6:.0f} MB" for kind, peak in sorted(peaks.items())))
    click.echo(f"slowest slice to decode: {slowest:.2f} s")
    assert run.returncode in (0, 3)
    assert scored == good, "a good slice was not scored"
    assert len(listed) == files, "a file has no row"
    assert max(peaks.values()) < LIMIT_BYTES
    assert slowest < LIMIT_S


if __name__ == "__main__":
    main()
