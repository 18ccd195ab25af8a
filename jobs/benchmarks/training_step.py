"""A training step of both stages, with the default settings, against that by torchvision's layers.

Each of the two runs in a process of its own, with one thread, and they take steps in turn.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, of_samples

# What a process holds: the function that makes a step.
held: dict[str, Any] = {}


def use_torchvisions_layers() -> None:
    """Let this process train as cctmn did before its own layers for training.

    Boxes that carry gradients are pooled by torchvision, all anchors are decoded, and convolutions
    without trained weights are like any other.
    """
    import torch

    from cctmn.model import classifier, frozen_conv
    from cctmn.model.detector import RankedRPN
    from cctmn.model.roi_align import RoiAlign

    # torchvision's layers are the classes that these two are made of.
    [pooling], [proposing] = RoiAlign.__bases__, RankedRPN.__bases__
    gathered: Any = RoiAlign.forward

    def pooled(self: Any, *args: Any) -> Any:
        forward: Any = pooling.forward if torch.is_grad_enabled() else gathered
        return forward(self, *args)

    changed: dict[tuple[Any, str], Any] = {
        (RoiAlign, "forward"): pooled,
        (RankedRPN, "forward"): proposing.forward,
        (frozen_conv, "use_for_frozen"): lambda module: None,  # noqa: ARG005
        (classifier, "ChannelsLastBoxLayers"): lambda head: head,
    }
    for (owner, name), value in changed.items():
        setattr(owner, name, value)


def make_task(stage: str, folder: Path) -> tuple[Any, Any]:
    """The task of a stage, ready to train, and its settings; model and slices are in `folder`."""
    import torch

    from cctmn.config import ClassifierConfig, DetectorConfig
    from cctmn.contract import InputContract
    from cctmn.data.lesions import open_lesions
    from cctmn.data.slices import open_slices
    from cctmn.model import checkpoint
    from cctmn.train.tasks import ClassifierTask, DetectorTask

    start, contract = checkpoint.load(folder / "m"), InputContract()
    config: Any
    task: Any
    if stage == "detector":
        config = DetectorConfig()
        samples: Any = open_lesions(str(folder / "lesions")).samples
        task = DetectorTask(start.net, samples, (), contract, config.variant)  # type: ignore[arg-type]
    else:
        config = ClassifierConfig()
        start = checkpoint.classifier_from_detector(start, seed=0)
        samples = open_slices(str(folder / "slices"), classes=config.classes).samples
        task = ClassifierTask(start.net, samples, (), contract, config)  # type: ignore[arg-type]
    task.net.to(memory_format=torch.channels_last)
    task.train()
    return task, config


def prepare(kind: str, stage: str, folder: Path) -> None:
    """Build the task and the optimiser of a stage from the model and the slices in `folder`."""
    import torch

    from cctmn.model.memory import keep_freed_memory

    torch.set_num_threads(1)
    if kind == "ours":
        keep_freed_memory()
    else:
        use_torchvisions_layers()
    task, config = make_task(stage, folder)
    optim = config.optim
    trained = [weight for weight in task.module.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(
        trained, lr=optim.lr, weight_decay=optim.weight_decay, fused=kind == "ours"
    )
    inputs = [task.read(index) for index in range(task.count)]

    def step(number: int) -> list[float]:
        seen = []
        for i in range(optim.batch_size):
            index = (number * optim.batch_size + i) % len(inputs)
            torch.manual_seed(index)
            losses = task.losses(task.module, [inputs[index]], device=torch.device("cpu"))
            loss = sum(losses.values())
            (loss / optim.batch_size).backward()
            seen.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return seen

    held["step"] = step


def timed(number: int) -> tuple[float, list[float]]:
    """Seconds that a step takes, and the losses of its slices."""
    began = time.perf_counter()
    losses = held["step"](number)
    return time.perf_counter() - began, losses


def compare(stage: str, folder: Path, *, steps: int, target: float) -> Comparison:
    """Time the steps of both in turn, after one that warms up and whose losses must agree."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    pools = {
        kind: ProcessPoolExecutor(
            1, mp_context=spawn, initializer=prepare, initargs=(kind, stage, folder)
        )
        for kind in seconds
    }
    first: dict[str, float] = {}
    try:
        for number in range(steps + 1):
            for kind, pool in pools.items():
                took, losses = pool.submit(timed, number).result()
                first.setdefault(kind, losses[0])
                if number:
                    seconds[kind].append(took)
    finally:
        for pool in pools.values():
            pool.shutdown()
    difference = abs(first["ours"] - first["theirs"])
    assert difference < 1e-3, f"{stage}: the first losses differ by {difference:.2g}"
    name = f"{stage}, step against torchvision's layers"
    return of_samples(name, seconds["ours"], seconds["theirs"], target=target)


def lines(folder: Path, *, repeats: int) -> Iterator[Comparison]:
    """Seconds per step of both stages, so many steps of each kind in turn."""
    for stage in ("detector", "classifier"):
        yield compare(stage, folder, steps=repeats, target=1.3)
