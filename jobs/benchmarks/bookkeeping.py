"""Bookkeeping of a large job: its CPU time per slice and its memory must not grow with the job.

    cd jobs && python -m benchmarks.bookkeeping 10_000_000 FOLDER [ROWS]

makes an output folder of so many slices in FOLDER, half of them done, and does what a run does
apart from looking into objects and scoring. The files of predictions have ROWS rows: 128 as those
of a job on CPUs, or 2048 as the smallest of a job on GPUs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.comparison import Comparison

SLICES: Final = (100_000, 1_000_000)  # of the two lines
SHARD: Final = 8192  # objects, as indexing.PAGE_OBJECTS
COMMIT: Final = 128  # rows of a file of predictions, if not given
STUDY: Final = 300  # slices
KEY: Final = b"k" * 32


def lines(repeats: int) -> Iterator[Comparison]:
    """CPU seconds per slice of ten times as many slices against the fewer ones."""
    per_slice: dict[int, float] = {}
    for slices in SLICES:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), slices=slices)
            measured = [_in_a_process(folder, slices) for _ in range(max(1, repeats // 6))]
        per_slice[slices] = min(one["cpu_s"] for one in measured) / slices
    small, large = per_slice.values()
    yield Comparison(
        "bookkeeping, per slice of 1,000,000 against 100,000", large, small, target=10 / 12
    )


def _in_a_process(folder: str, slices: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bookkeeping", str(slices), folder]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def uri(number: int) -> str:
    """Return the URI of an object."""
    return f"s3://hospital-archive/{number // 1000:06d}/series/{number:09d}.dcm"


def _ids(rng: np.random.Generator, count: int) -> list[str]:
    digits = rng.bytes(16 * count).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


def make(folder: Path, *, slices: int, commit_rows: int = COMMIT) -> None:
    """Make an output folder with this inventory, and predictions of every second slice."""
    from cctmn import schema, tables
    from cctmn.score import commit

    rng = np.random.default_rng(1)
    out = (folder / "out").absolute().as_uri()
    predictions = schema.predictions(("control", "pneumonia", "covid"))
    (folder / "out/predictions").mkdir(parents=True)
    stamp = commit.Stamp.of(fingerprint="f" * 32, key=KEY)
    inventory = {field.name: pa.nulls(SHARD, field.type) for field in schema.INVENTORY}
    empty = {field.name: pa.nulls(commit_rows, field.type) for field in predictions}
    for shard, at in enumerate(range(0, slices, SHARD)):
        rows = min(SHARD, slices - at)
        ids = _ids(rng, rows)
        columns = {name: column.slice(0, rows) for name, column in inventory.items()}
        columns |= {"slice_id": pa.array(ids), "uri": pa.array([uri(at + n) for n in range(rows)])}
        columns |= {"object_size": pa.array([at + n for n in range(rows)], pa.int64())}
        columns |= {"etag": pa.array(["e"] * rows), "error_code": pa.array([""] * rows)}
        table = pa.table([columns[n] for n in schema.INVENTORY.names], schema=schema.INVENTORY)
        table = table.replace_schema_metadata({schema.WHOLE_OBJECTS: b"1"})
        tables.put_private(table, f"{out}/private/inventory", name=f"g000000-{shard:06d}")
        for first in range(0, rows, 2 * commit_rows):
            done = ids[first : first + 2 * commit_rows : 2]
            columns = {name: column.slice(0, len(done)) for name, column in empty.items()}
            study = [
                f"{(at + first + 2 * n) // STUDY * 0x9E3779B1 % 2**32:08x}"
                for n in range(len(done))
            ]
            columns |= {"slice_id": pa.array(done), "error_code": pa.array([""] * len(done))}
            columns |= {"study_key": pa.array(study), "series_key": pa.array(study)}
            columns |= {
                "patient_key": pa.array(study),
                "pred_class": pa.array(["covid"] * len(done)),
            }
            columns |= {"slice_z_mm": pa.array(np.arange(len(done)), pa.float32())}
            columns |= {
                f"logit_{name}": pa.array(rng.random(len(done)), pa.float32())
                for name in schema.classes_of(predictions)
            }
            block = pa.table(
                [columns[n].cast(predictions.field(n).type) for n in predictions.names],
                schema=predictions,
            )
            commit.write(block, folder=f"{out}/predictions", schema=predictions, stamp=stamp)


def run(folder: Path, *, slices: int) -> dict[str, Any]:
    """Do the bookkeeping of a run on this folder; return seconds of its parts and peak memory."""
    from cctmn import studies
    from cctmn.score import commit, reconcile
    from cctmn.score.indexing import Index, Inventory
    from cctmn.score.prediction_files import PredictionFiles
    from cctmn.score.todo import Todo
    from cctmn.store import ObjectInfo

    out = (folder / "out").absolute().as_uri()
    seconds: dict[str, float] = {}
    peaks: list[int] = []  # MiB until the end of each part
    began = time.process_time()

    def took(name: str) -> None:
        nonlocal began
        now = time.process_time()
        seconds[name] = round(now - began, 2)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
        began = now

    done = PredictionFiles(
        f"{out}/predictions", stamp=commit.Stamp.of(fingerprint="f" * 32, key=KEY)
    )
    done.refresh()
    finished = done.finished
    took("predictions")
    known = Inventory(f"{out}/private/inventory")
    known.read(finished=finished)
    took("inventory")
    todo = Todo(f"{out}/private/todo")
    listed = (ObjectInfo(uri(n), n, "e") for n in range(slices))
    with Index(listed, known=known, todo=todo, finished=finished, key=KEY) as index:
        index.wait(rows=None)
    took("index")
    done.refresh()
    done.remove_doubles()
    known.drop_replaced(finished=done.finished)
    counts = reconcile.count(done, inventory=known.folder)
    assert (counts.inventory, counts.ok, todo.rows) == (slices, len(finished), counts.pending)
    took("count")
    studies.write(out, rule=studies.StudyRule("softmax"))
    took("studies")
    return seconds | {"cpu_s": round(sum(seconds.values()), 2), "peaks_mib": peaks}


def main() -> None:
    """Make the folder if it is not there, and print the result of a run as JSON."""
    slices, folder = int(sys.argv[1]), Path(sys.argv[2])
    if not (folder / "out").exists():
        make(folder, slices=slices, commit_rows=int(sys.argv[3]) if sys.argv[3:] else COMMIT)
    sys.stdout.write(json.dumps(run(folder, slices=slices)) + "\n")


if __name__ == "__main__":
    main()
