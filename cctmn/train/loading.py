"""The training slices of an epoch, read in this process or ahead of it by others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cctmn.train.steps import MicroBatch
from cctmn.train.tasks import Task


class Loader:
    """Reads the micro-batches of each epoch.

    The processes that read ahead stay for the next epoch. Where slices go to a GPU they lie in
    pinned memory, from which it copies without the help of a core.
    """

    def __init__(self, task: Task, *, processes: int, device: torch.device) -> None:
        self._order = _Order()
        self._loader = DataLoader(
            _Slices(task),
            batch_sampler=self._order,
            num_workers=processes,
            persistent_workers=processes > 0,
            pin_memory=processes > 0 and device.type == "cuda",
            collate_fn=list,
            # Its own, or each epoch would draw from the global one.
            generator=torch.Generator(),
        )

    def epoch(self, work: list[MicroBatch]) -> Iterator[tuple[list[Any], MicroBatch]]:
        """Yield the slices of each micro-batch, in order."""
        self._order.work = work
        return zip(self._loader, work, strict=True)


class _Order:
    """The indices of the slices of each micro-batch, which change with the epoch."""

    def __init__(self) -> None:
        self.work: list[MicroBatch] = []

    def __iter__(self) -> Iterator[list[int]]:
        return (list(micro.indices) for micro in self.work)

    def __len__(self) -> int:
        return len(self.work)


class _Slices(Dataset[Any]):
    """A task's slices for torch's loader."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return self._task.count

    def __getitem__(self, index: int) -> Any:
        return self._task.read(index)
