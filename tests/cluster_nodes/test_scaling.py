"""All scorers work at the same time, on one node and on several.

A stand-in for the network waits in its first batch until all scorers have one. The tests count the
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
from tests.clocked import batches_of, clocked
from tests.makers import StandIn, png, stand_in

pytestmark = pytest.mark.slow

SLICES = 160
BATCH = 4
STORE = 100 << 20  # bytes
GATHER_S = 200.0  # for scorers to start on a busy machine


class Gathering:
    """A stand-in that ends no batch until as many scorers are in a batch as are expected."""

    def __init__(self, folder: str, gpu: bool, *, expected: int) -> None:
        self._scorer, self._folder, self._expected = StandIn(0.0), Path(folder), expected
        self._name = f"{os.getpid()}-{id(self)}"

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        (self._folder / self._name).touch()
        end = time.monotonic() + GATHER_S
        while len(list(self._folder.iterdir())) < self._expected:
            if time.monotonic() > end:
                raise TimeoutError("the other scorers have no batch")
            time.sleep(0.1)
        return self._scorer.predict(images, masks=masks)


def gathering(folder: Path, *, expected: int) -> ModelSource:
    folder.mkdir()
    load = functools.partial(Gathering, str(folder), expected=expected)
    return dataclasses.replace(stand_in(), load=load)


def gathering_job(folder: Path, slices: Path, *, expected: int, actors: int) -> run.ScoreJob:
    return run.ScoreJob(
        [str(slices)],
        out=str(folder / "out"),
        source=gathering(folder / "scorers", expected=expected),
        settings=ScoreConfig(actors=actors, gpus=1, batch_size=BATCH, block_rows=8),
    )


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    for n in range(SLICES):
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


@pytest.mark.timeout(500)
def test_all_scorers_of_one_node_and_of_several_work_at_once(
    nodes: Any, slices: Path, tmp_path: Path
) -> None:
    for gpus in (2, 1, 1):
        nodes.add_node(num_cpus=2, num_gpus=gpus, object_store_memory=STORE)
    nodes.wait_for_nodes()
    summary = run.score(gathering_job(tmp_path, slices, expected=4, actors=4))
    assert summary.counts.ok == SLICES
    assert len(list((tmp_path / "scorers").iterdir())) == 4


@pytest.mark.timeout(500)
def test_a_scorer_on_a_gpu_scores_one_batch_at_a_time(
    nodes: Any, slices: Path, tmp_path: Path
) -> None:
    """Although it holds two blocks: one that is scored, and the next."""
    nodes.add_node(num_cpus=3, num_gpus=1, object_store_memory=STORE)
    nodes.wait_for_nodes()
    job = run.ScoreJob(
        [str(slices)],
        out=str(tmp_path / "out"),
        source=clocked(tmp_path / "clock", slices_per_s=100.0),
        settings=ScoreConfig(actors=1, gpus=1, batch_size=BATCH, block_rows=8),
    )
    assert run.score(job).counts.ok == SLICES
    [batches] = batches_of(tmp_path / "clock")
    assert sum(slices for _, _, slices in batches) == SLICES
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(batches))


@pytest.mark.timeout(500)
def test_the_pool_grows_with_the_cluster(nodes: Any, slices: Path, tmp_path: Path) -> None:
    """From no GPU at all to one, and to three while it runs."""
    job = gathering_job(tmp_path, slices, expected=3, actors=3)
    nodes.add_node(num_cpus=2, object_store_memory=STORE)  # reads and writes

    with ThreadPoolExecutor(1) as pool:  # nodes can be added from the main thread alone
        scoring = pool.submit(run.score, job)
        for gpus in (1, 2):
            time.sleep(4)
            nodes.add_node(num_cpus=gpus, num_gpus=gpus, object_store_memory=STORE)
        summary = scoring.result(timeout=400)
    assert summary.counts.ok == SLICES
    assert len(list((tmp_path / "scorers").iterdir())) == 3
