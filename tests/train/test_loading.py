"""Slices are read ahead by processes that stay, and into pinned memory for a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from cctmn.config import Optim
from cctmn.train.loading import Loader
from cctmn.train.steps import Steps


class OfProcess:
    """The part of a task that loading uses; it reads the id of the process that reads."""

    count = 4

    def read(self, index: int) -> tuple[int, int]:
        return index, os.getpid()


def test_the_same_processes_read_in_every_epoch() -> None:
    steps = Steps(4, Optim(epochs=2))
    loader = Loader(OfProcess(), processes=1, device=torch.device("cpu"))  # type: ignore[arg-type]
    read = [
        one for epoch in range(2) for batch, _ in loader.epoch(steps.epoch(epoch)) for one in batch
    ]
    expected = [i for epoch in range(2) for one in steps.epoch(epoch) for i in one.indices]
    assert [index for index, _ in read] == expected
    (process,) = {process for _, process in read}
    assert process != os.getpid()


@pytest.mark.parametrize(("processes", "device"), [(0, "cuda"), (1, "cpu"), (1, "cuda")])
def test_memory_is_pinned_where_processes_load_for_a_gpu(processes: int, device: str) -> None:
    loader = Loader(OfProcess(), processes=processes, device=torch.device(device))  # type: ignore[arg-type]
    assert loader._loader.pin_memory is (processes > 0 and device == "cuda")
