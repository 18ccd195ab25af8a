"""The plan of a run: what each worker reads when, and how much it counts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from cctmn.config import Optim
from cctmn.train.steps import MicroBatch, Steps

SIZES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 4)]


def split(work: list[MicroBatch]) -> list[list[MicroBatch]]:
    """A worker's micro-batches by step."""
    steps: list[list[MicroBatch]] = [[]]
    for micro in work:
        steps[-1].append(micro)
        if micro.is_last:
            steps.append([])
    assert steps.pop() == []
    return steps


@pytest.mark.parametrize("count", [1, 4, 7, 13])
@pytest.mark.parametrize("batch", [1, 4, 5])
@pytest.mark.parametrize(("size", "micro"), SIZES)
def test_workers_together_give_the_mean_over_each_steps_slices(count, batch, size, micro):
    steps = Steps(count, Optim(epochs=2, batch_size=batch, seed=3), size=size, micro=micro)
    value = np.random.default_rng(0).normal(size=count)  # stands for a slice's gradient
    workers = [split(steps.epoch(1, rank=rank)) for rank in range(size)]
    assert {len(work) for work in workers} == {steps.per_epoch} == {math.ceil(count / batch)}
    seen: list[int] = []
    for parts in zip(*workers, strict=True):
        of_step = [i for part in parts for one in part if one.weight for i in one.indices]
        seen += of_step
        assert all(len(one.indices) <= micro for part in parts for one in part)
        sums = [sum(one.weight * value[list(one.indices)].mean() for one in p) for p in parts]
        assert np.mean(sums) == pytest.approx(value[of_step].mean())
        assert sum(one.weight for part in parts for one in part) == pytest.approx(size)
    assert Counter(seen) == Counter(range(count))


def test_a_worker_without_a_slice_runs_one_of_weight_zero():
    steps = Steps(5, Optim(epochs=1, batch_size=2), size=3)
    last = [steps.epoch(0, rank=rank)[-1] for rank in range(3)]
    assert [one.weight for one in last] == [3.0, 0.0, 0.0]
    assert len({one.indices for one in last}) == 1
    assert [one.weight for one in steps.epoch(0, rank=2)] == [0.0] * 3


def test_order_depends_on_seed_and_epoch_only():
    def order(seed: int, epoch: int, **workers: int) -> list[int]:
        steps = Steps(20, Optim(epochs=9, seed=seed), **workers)
        return [i for micro in steps.epoch(epoch) for i in micro.indices]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(*both)) for both in ((1, 0), (1, 1), (2, 0), (2, 1))}) == 4
    assert order(1, 0)[:3] == order(1, 0, size=3)[:3]  # batches of one: the first worker has all


def test_a_longer_run_begins_as_a_shorter_one():
    short, long = (Steps(7, Optim(epochs=n, batch_size=2)) for n in (2, 5))
    assert [short.epoch(e) for e in (0, 1)] == [long.epoch(e) for e in (0, 1)]


@pytest.mark.parametrize(
    ("limit", "total", "lengths"),
    [(0, 12, [4, 4, 4]), (6, 6, [4, 2]), (8, 8, [4, 4]), (99, 12, [4, 4, 4])],
)
def test_steps_end_the_run_earlier_than_epochs(limit, total, lengths):
    steps = Steps(7, Optim(epochs=3, batch_size=2, steps=limit))
    assert (steps.total, steps.epochs) == (total, len(lengths))
    assert [len(split(steps.epoch(e))) for e in range(steps.epochs)] == lengths


def test_learning_rate():
    def rates(**settings) -> list[float]:
        steps = Steps(4, Optim(epochs=2, lr=0.1, **settings))
        return [steps.lr(step) for step in range(steps.total)]

    assert rates() == [0.1] * 8
    assert rates(warmup=4) == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 5)
    cosine = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert rates(schedule="cosine") == pytest.approx(cosine)
    both = [low * high for low, high in zip([0.25, 0.5, 0.75] + [1] * 5, cosine, strict=True)]
    assert rates(schedule="cosine", warmup=4) == pytest.approx(both)
    assert rates(schedule="cosine", steps=4)[-1] == pytest.approx(
        0.1 * (1 + math.cos(0.75 * math.pi)) / 2
    )


def test_sampling_depends_on_seed_epoch_and_slice_only():
    one, two = (Steps(5, Optim(), size=size) for size in (1, 2))
    assert one.seed(0, (3,)) == two.seed(0, (3,))
    seeds = {Steps(5, Optim(seed=s)).seed(e, (i,)) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch takes
