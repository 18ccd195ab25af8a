"""The order of slices in training: which of them make an optimiser step, and on which worker.

The order and everything random in a step follow from seed, epoch and slice alone. Therefore two
workers learn what one worker learns, and a resumed run learns what an uninterrupted one learns.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from cctmn.config import Optim


@dataclass(frozen=True)
class MicroBatch:
    """Slices of one forward pass and the weight of their mean loss in the step's loss."""

    indices: tuple[int, ...]
    weight: float
    is_last: bool  # whether it is the last of its step on this worker


@dataclass(frozen=True)
class Steps:
    """The optimiser steps of a run: `count` slices, `size` workers."""

    count: int
    optim: Optim
    size: int = 1
    micro: int = 1

    @property
    def per_epoch(self) -> int:
        """Steps of a whole epoch; the last may have fewer slices."""
        return math.ceil(self.count / self.optim.batch_size)

    @property
    def total(self) -> int:
        """Steps of the run."""
        whole = self.optim.epochs * self.per_epoch
        return min(whole, self.optim.steps) if self.optim.steps else whole

    @property
    def epochs(self) -> int:
        """Epochs of the run, the last of which may end early."""
        return math.ceil(self.total / self.per_epoch)

    def epoch(self, epoch: int, *, rank: int = 0) -> list[MicroBatch]:
        """Return the micro-batches of worker `rank` in epoch `epoch`, both from 0.

        A step's loss is the mean over its slices, and gradients are averaged over workers, so a
        worker weighs its slices by size / slices of the step. Where a step has fewer slices than
        workers, the others run one with weight 0, for every worker must take part.
        """
        order = np.random.default_rng([self.optim.seed, epoch]).permutation(self.count)
        batch, steps = (
            self.optim.batch_size,
            min(self.per_epoch, self.total - epoch * self.per_epoch),
        )
        work = []
        for step in range(steps):
            whole = order[step * batch : (step + 1) * batch]
            own = whole[rank :: self.size]
            weight = self.size / len(whole) if len(own) else 0.0
            own = own if len(own) else whole[:1]
            parts = [own[i : i + self.micro] for i in range(0, len(own), self.micro)]
            work += [
                MicroBatch(tuple(part.tolist()), weight * len(part), is_last=part is parts[-1])
                for part in parts
            ]
        return work

    def lr(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        optim = self.optim
        rate = optim.lr * min(1.0, (step + 1) / optim.warmup) if optim.warmup else optim.lr
        if optim.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.total))
        return rate

    def seed(self, epoch: int, indices: tuple[int, ...]) -> int:
        """Seed of a forward pass of these slices, which samples anchors and RoIs."""
        text = f"{self.optim.seed} {epoch} {indices}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
