"""All scorers work at the same time, on one node and on several.

A stand-in for the network sleeps, so that the number of cores is not the limit. The tests count the
scorers that work at one moment; the rates are printed (pytest -s) and not asserted, because a busy
machine slows them down. A rate is measured on the steady part: from when the last scorer has begun
to when the first has nothing left.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cctmn.config import ScoreConfig
from cctmn.score import run
from cctmn.score.scorer import ImageArray, ModelSource
from tests.makers import StandIn, png, stand_in

pytestmark = pytest.mark.slow

SLEEP_S = 0.1  # a slice; some 4 ms of CPU go into reading and writing it
STEADY_S = 4.0  # about
BATCH = 4
STORE = 100 << 20  # bytes
GATHER_S = 120.0  # for scorers to start on a busy machine


class Clocked:
    """A stand-in that writes down when it began and ended each batch."""

    def __init__(self, folder: str) -> None:
        self._scorer, self._file = StandIn(SLEEP_S), Path(folder) / f"{os.getpid()}-{id(self)}"

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        began = time.time()
        outcome = self._scorer.predict(images, masks=masks)
        with self._file.open("a") as file:
            file.write(f"{began} {time.time()} {len(images)}\n")
        return outcome


def clocked(folder: Path) -> ModelSource:
    folder.mkdir()
    return dataclasses.replace(stand_in(), load=functools.partial(Clocked, str(folder)))


class Gathering:
    """A stand-in that scores nothing until as many scorers have started as are expected."""

    def __init__(self, folder: str, *, expected: int) -> None:
        self._scorer, self._folder, self._expected = StandIn(0.0), Path(folder), expected
        (self._folder / f"{os.getpid()}-{id(self)}").touch()

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        end = time.monotonic() + GATHER_S
        while len(list(self._folder.iterdir())) < self._expected and time.monotonic() < end:
            time.sleep(0.1)
        return self._scorer.predict(images, masks=masks)


def gathering(folder: Path, *, expected: int) -> ModelSource:
    folder.mkdir()
    load = functools.partial(Gathering, str(folder), expected=expected)
    return dataclasses.replace(stand_in(), load=load)


Batch = tuple[float, float, int]  # when it began and ended, s since the epoch; slices


def batches_of(folder: Path) -> list[list[Batch]]:
    """The batches of each scorer, in the order of their times."""
    scorers = []
    for path in folder.iterdir():
        lines = (line.split() for line in path.read_text().splitlines())
        scorers.append([(float(began), float(ended), int(n)) for began, ended, n in lines])
    return scorers


def most_at_once(scorers: list[list[Batch]]) -> int:
    """The largest number of scorers that were in a batch at one moment."""
    # A batch that ends when another begins counts first, as -1 sorts before 1.
    edges = sorted(
        edge
        for batches in scorers
        for began, ended, _ in batches
        for edge in ((began, 1), (ended, -1))
    )
    return max(itertools.accumulate(step for _, step in edges))


def rate(scorers: list[list[Batch]]) -> float:
    """Slices per second while all scorers work; nan if they never all did."""
    begin = max(batches[0][0] for batches in scorers)
    end = min(batches[-1][1] for batches in scorers)
    if end <= begin:
        return math.nan
    slices = 0.0
    for began, ended, count in (batch for batches in scorers for batch in batches):
        inside = max(0.0, min(ended, end) - max(began, begin))
        slices += count * inside / (ended - began)
    return slices / (end - begin)


def measured(folder: Path, slices: Path, *, scorers: int, gpus: float) -> float:
    """Score slices with so many scorers, check that all work at once, and return the rate."""
    job = run.ScoreJob(
        [str(slices)],
        out=str(folder / f"out{scorers}"),
        source=clocked(folder / f"clock{scorers}"),
        settings=ScoreConfig(actors=scorers, gpus=gpus, batch_size=BATCH, block_rows=8),
        limit=int(scorers * STEADY_S / SLEEP_S),
    )
    summary = run.score(job)
    assert summary.counts.ok == job.limit
    times = batches_of(folder / f"clock{scorers}")
    assert sum(count for batches in times for *_, count in batches) == job.limit
    assert len(times) == most_at_once(times) == scorers
    return rate(times)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    for n in range(int(4 * STEADY_S / SLEEP_S)):
        (folder / f"{n}.png").write_bytes(png(n % 10))
    return folder


@pytest.fixture
def nodes(no_ray: None) -> Iterator[Any]:
    """A head without work; each test adds the nodes it wants, of one fake GPU each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": STORE,
            "include_dashboard": False,
        },
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def report(what: str, rates: dict[int, float]) -> None:
    for count, value in rates.items():
        linear = value / (count * rates[1])
        print(f"\n{count} {what}: {value:.2f} slices/s, {linear:.3f} of linear")


@pytest.mark.timeout(300)
def test_scorers_on_one_node_work_at_once(nodes: Any, slices: Path, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=2, num_gpus=4, object_store_memory=STORE)
    rates = {n: measured(tmp_path, slices, scorers=n, gpus=1) for n in (1, 4)}
    report("scorers", rates)


@pytest.mark.timeout(300)
def test_scorers_on_several_nodes_work_at_once(nodes: Any, slices: Path, tmp_path: Path) -> None:
    rates = {}
    for n, more in ((1, 1), (3, 2)):
        for _ in range(more):
            nodes.add_node(num_cpus=2, num_gpus=1, object_store_memory=STORE)
        nodes.wait_for_nodes()
        rates[n] = measured(tmp_path, slices, scorers=n, gpus=1)
    report("nodes", rates)


@pytest.mark.timeout(300)
def test_the_pool_grows_with_the_cluster(nodes: Any, slices: Path, tmp_path: Path) -> None:
    """From no GPU at all to one, and to three while it runs."""
    clock = tmp_path / "clock"
    settings = ScoreConfig(gpus=1, batch_size=BATCH, block_rows=8)
    job = run.ScoreJob(
        [str(slices)],
        out=str(tmp_path / "out"),
        source=gathering(clock, expected=3),
        settings=settings,
    )
    nodes.add_node(num_cpus=2, object_store_memory=STORE)  # reads and writes

    with ThreadPoolExecutor(1) as pool:  # nodes can be added from the main thread alone
        scoring = pool.submit(run.score, job)
        for gpus in (1, 2):
            time.sleep(8)
            nodes.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=STORE)
        summary = scoring.result(timeout=200)
    assert summary.counts.ok == len(list(slices.iterdir()))
    scorers = len(list(clock.iterdir()))
    print(f"\n{scorers} scorers on 3 GPUs that came one by one, {summary.elapsed_s:.0f} s")
    assert scorers == 3
