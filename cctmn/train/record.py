"""The record of a training run for people: metrics.csv, steps.csv and a TensorBoard file.

The files are written as a whole after every epoch, so that a run that was killed and resumed has
one record without gaps or doubled rows.
"""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from cctmn import store
from cctmn.train.loop import History

EPOCHS, STEPS = "metrics.csv", "steps.csv"
EVENTS = "events.out.tfevents.0.cctmn"  # one name, so that a later epoch replaces an earlier file


def write(history: History, out: str) -> None:
    """Write all three below `out`."""
    names = list(history.losses)
    rows = zip(*history.losses.values(), strict=True)
    # Epochs that an earlier version trained lack some columns; these are empty there.
    columns = list(dict.fromkeys(name for row in reversed(history.rows) for name in row))
    epochs = ([row.get(name) for name in columns] for row in history.rows)
    store.put(store.join(out, EPOCHS), _table(columns, epochs))
    store.put(
        store.join(out, STEPS),
        _table(["step", *names], ([step + 1, *row] for step, row in enumerate(rows))),
    )
    store.put(store.join(out, "tensorboard", EVENTS), _events(history))


def _table(names: Iterable[str], rows: Iterable[Iterable[float | None]]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows(["" if value is None else f"{value:.7g}" for value in row] for row in rows)
    return text.getvalue().encode()


def _events(history: History) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for name, values in history.losses.items():
            for step, value in _thinned(values):
                writer.add_scalar(f"train/{name}", value, step, walltime=0)
        for row in history.rows:
            for name, value in row.items():
                if name != "epoch" and not math.isnan(value):  # it would warn of each
                    writer.add_scalar(f"epoch/{name}", value, int(row["epoch"]), walltime=0)
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _thinned(values: Sequence[float], *, most: int = 2000) -> Iterable[tuple[int, float]]:
    """At most `most` of the steps; steps.csv has them all."""
    stride = -(-len(values) // most)
    return ((step + 1, values[step]) for step in range(0, len(values), stride))
