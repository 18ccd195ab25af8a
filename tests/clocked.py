"""Stand-ins that take the time of GPUs and of cores: a network and a task that decodes."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from cctmn.score.error_row import error_row
from cctmn.score.pipeline import Plan
from cctmn.score.prepare import PREPARED
from cctmn.score.scorer import ImageArray, ModelSource
from tests.makers import stand_in

Batch = tuple[float, float, int]  # when it began and ended, s since the epoch; slices

# Three lesions, about as many as a slice of a sick patient has.
PREDICTION = SimpleNamespace(
    logits_C=np.float32([0.1, 0.2, 0.3]),
    boxes_M4=np.tile(np.float32([0, 0, 30, 20]), (3, 1)),
    scores_M=np.float32([0.9, 0.8, 0.7]),
    labels_M=np.array([1, 1, 1]),
    mask_px_M=None,
    mask_logits_M1SS=None,
)


class Clocked:
    """A stand-in that sleeps for a batch as long as a device of so many slices/s computes.

    It looks at no pixel, so that it takes no time of a core.
    """

    def __init__(self, folder: str, gpu: bool, *, slices_per_s: float) -> None:
        self._rate = slices_per_s
        self._path = Path(folder) / f"{os.getpid()}-{id(self)}"

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        began = time.time()
        time.sleep(len(images) / self._rate)
        with self._path.open("a") as file:
            file.write(f"{began} {time.time()} {len(images)}\n")
        return [PREDICTION] * len(images)


def clocked(folder: Path, *, slices_per_s: float) -> ModelSource:
    folder.mkdir(parents=True)
    load = functools.partial(Clocked, str(folder), slices_per_s=slices_per_s)
    return dataclasses.replace(stand_in(), load=load)


@functools.cache
def _pixels(rows: int, side: int) -> pa.Array:
    return pa.array([np.random.default_rng(0).bytes(side * side)] * rows, pa.binary())


def prepare_block(
    block: pa.Table, *, source: Any, key: bytes, plan: Plan, decode_ms: float, side: int
) -> pa.Table:
    """Stand in for the task that fetches and decodes: sleep, and give the same pixels always."""
    began = time.time()
    rows = [
        error_row({"slice_id": name, "frame": 0, "flags": []}, "")
        | {"rows": side, "cols": side, "input_rows": side, "input_cols": side}
        | {"to_stored": [1.0, 0, 0, 0, 1, 0], "t_decode_ms": decode_ms}
        for name in block["slice_id"].to_pylist()
    ]
    table = pa.Table.from_pylist(rows, schema=PREPARED)
    place = PREPARED.get_field_index("pixels")
    table = table.set_column(place, PREPARED.field(place), _pixels(len(rows), side))
    time.sleep(max(0.0, decode_ms * len(rows) / 1e3 - (time.time() - began)))
    return table


def batches_of(folder: Path) -> list[list[Batch]]:
    """The batches of each scorer, in the order of their times."""
    scorers = []
    for path in folder.iterdir():
        lines = (line.split() for line in path.read_text().splitlines())
        scorers.append([(float(began), float(ended), int(n)) for began, ended, n in lines])
    return scorers


@dataclasses.dataclass(frozen=True)
class Steady:
    """What all scorers did while all of them worked, in the part of that time that is measured."""

    slices_per_s: float
    busy: float  # fraction of the time that they spent in batches
    begin: float  # s since the epoch
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def steady(scorers: list[list[Batch]], *, left_out: float = 0.0) -> Steady:
    """Return the rate and the work of all scorers while all of them work.

    The first part of that time is left out, for example 0.5 of it: other processes still start.
    """
    begin = max(batches[0][0] for batches in scorers)
    end = min(batches[-1][1] for batches in scorers)
    assert end > begin, "the scorers never all worked at one time"
    begin += left_out * (end - begin)
    slices, busy_s = 0.0, 0.0
    for began, ended, count in (batch for batches in scorers for batch in batches):
        inside = max(0.0, min(ended, end) - max(began, begin))
        slices, busy_s = slices + count * inside / (ended - began), busy_s + inside
    return Steady(slices / (end - begin), busy_s / (end - begin) / len(scorers), begin, end)
