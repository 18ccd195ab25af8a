"""Kill `cctmn compact` at random moments, go on with a reader and another command, compare rows.

    python -m tests.compact_kills --kills 30 --seed 1

Each process gets SIGKILL at a random time after it has begun to merge. Deleting is slowed down, so
that a good part of the kills falls between a merged file and the end of its sources. After a kill
all rows are read; then the folder is compacted again, at times after the start of a job.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from cctmn import schema, store, tables
from cctmn.score import commit, compact
from cctmn.score.prediction_files import PredictionFiles
from tests.conftest import REPO
from tests.processes import end_with_the_test_run

ROWS = 4  # per file
FILES = 120
MERGED_BYTES, ROW_GROUP_ROWS = 20_000, 16  # so that several merged files are written
PREDICTIONS = schema.predictions(("control", "covid"))
STAMP = commit.Stamp.of(fingerprint="f" * 32, key=b"k" * 32)
LONGEST_S = 2.0  # from the beginning of a compaction to its kill


def write_blocks(
    out: Path | str,
    *,
    files: int,
    first: int = 0,
    stamp: commit.Stamp = STAMP,
    **columns: Any,
) -> None:
    """Write files of ROWS rows, numbered from `first`; each tenth row is an error."""
    device_name = columns.pop("device_name", "")
    folder = store.join(store.to_uri(str(out)), "predictions")
    store.make_folder(folder)
    for block in range(first, first + files):
        rows = []
        for n in range(block * ROWS, (block + 1) * ROWS):
            row = dict.fromkeys(PREDICTIONS.names) | {
                "slice_id": f"{n:032x}",
                "study_key": f"{n // 30:016x}",
                "error_code": "" if n % 10 else "truncated",
                "flags": ["hu_guessed"] if n % 3 else [],
                "logit_covid": n / 7,
            }
            rows.append(row | columns)
        table = pa.Table.from_pylist(rows, schema=PREDICTIONS)
        commit.write(table, folder=folder, schema=PREDICTIONS, stamp=stamp, device_name=device_name)


def rows_by_id(folder: str) -> dict[str, dict[str, Any]]:
    """All rows as a reader gets them; a slice with two rows fails."""
    rows = tables.rows(folder)
    result = {row["slice_id"]: row for row in rows}
    assert len(result) == len(rows), "a slice has two rows"
    return result


@dataclass(frozen=True)
class Killed:
    """How many processes were killed, and how many of them left rows in two files."""

    kills: int
    between: int
    folders: int


def kill_often(folder: Path, *, kills: int, seed: int) -> Killed:
    """Compact folders and kill the process until that has happened so often."""
    rng = random.Random(seed)
    done = between = folders = 0
    while done < kills:
        out = folder / f"out{folders}"
        write_blocks(out, files=FILES)
        folders += 1
        predictions = (out / "predictions").as_uri()
        expected = rows_by_id(predictions)
        while done < kills:
            killed = run_for(out, limit_s=rng.uniform(0, LONGEST_S))
            done += killed
            stored = tables.stored_sizes(predictions)
            between += bool(tables.replacements(stored))
            assert rows_by_id(predictions) == expected, "rows differ after a kill"
            if not killed:
                break
            if rng.random() < 0.5:
                files = PredictionFiles(predictions, stamp=STAMP)
                assert files.refresh() < 2  # at most a temporary file
                assert files.remove_doubles() == 0
                assert rows_by_id(predictions) == expected, "rows differ after the start of a job"
        assert run_for(out, limit_s=600) is False
        assert rows_by_id(predictions) == expected, "rows differ at the end"
        left = {file.name for file in (out / "predictions").iterdir()}
        assert left == {uri.rsplit("/", 1)[1] for uri in tables.parquet_files(predictions)}
    return Killed(done, between, folders)


def run_for(out: Path, *, limit_s: float) -> bool:
    """Compact in a process of its own that is killed after a time; return whether it was."""
    command = [sys.executable, "-m", "tests.compact_kills", "--child", str(out), str(limit_s)]
    done = subprocess.run(command, cwd=REPO, check=False, preexec_fn=end_with_the_test_run)
    assert done.returncode in (0, -signal.SIGKILL), done.returncode
    return done.returncode != 0


def _child(out: str, limit_s: float) -> None:
    delete = store.delete

    def slowly(uri: str) -> None:
        time.sleep(random.uniform(0, 0.05))
        delete(uri)

    store.delete = slowly
    compact.MERGED_BYTES, commit.ROW_GROUP_ROWS = MERGED_BYTES, ROW_GROUP_ROWS
    compact.THREADS = 2
    threading.Timer(limit_s, os.kill, [os.getpid(), signal.SIGKILL]).start()
    compact.compact(out)
    os._exit(0)  # without waiting for the timer


@click.command()
@click.option("--kills", default=30, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(kills: int, seed: int) -> None:
    """Count rows that kills have lost or doubled."""
    with tempfile.TemporaryDirectory() as made:
        result = kill_often(Path(made), kills=kills, seed=seed)
    click.echo(
        f"{result.kills} kills in {result.folders} folders, {result.between} of them with rows in "
        "two files: 0 lost, 0 doubled, equal"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], float(sys.argv[3]))
    else:
        main()
