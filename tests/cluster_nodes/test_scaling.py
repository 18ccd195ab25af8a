"""All scorers work at the same time, on one node and on several.

A stand-in for the network sleeps, so that the number of cores is not the limit. The tests count the
scorers that work at one moment, and no rate, because a busy machine slows them down.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
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


def check_all_work(folder: Path, slices: Path, *, scorers: int) -> None:
    """Score slices with so many scorers, and check that all work at once."""
    job = run.ScoreJob(
        [str(slices)],
        out=str(folder / "out"),
        source=clocked(folder / "clock"),
        settings=ScoreConfig(actors=scorers, gpus=1, batch_size=BATCH, block_rows=8),
        limit=int(scorers * STEADY_S / SLEEP_S),
    )
    summary = run.score(job)
    assert summary.counts.ok == job.limit
    times = batches_of(folder / "clock")
    assert sum(count for batches in times for *_, count in batches) == job.limit
    assert len(times) == most_at_once(times) == scorers


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


@pytest.mark.timeout(300)
def test_all_scorers_of_one_node_and_of_several_work_at_once(
    nodes: Any, slices: Path, tmp_path: Path
) -> None:
    for gpus in (2, 1, 1):
        nodes.add_node(num_cpus=2, num_gpus=gpus, object_store_memory=STORE)
    nodes.wait_for_nodes()
    check_all_work(tmp_path, slices, scorers=4)


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
            time.sleep(4)
            nodes.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=STORE)
        summary = scoring.result(timeout=200)
    assert summary.counts.ok == len(list(slices.iterdir()))
    scorers = len(list(clock.iterdir()))
    print(f"\n{scorers} scorers on 3 GPUs that came one by one, {summary.elapsed_s:.0f} s")
    assert scorers == 3
