"""Steps of both stages: on Ray Train against a plain loop, and against torchvision's layers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import training_step
from benchmarks.comparison import Comparison, of_samples

BACKBONE, TRUNCATION = "resnet18", 1
SLICES, EPOCHS = 8, 4  # the first epoch warms up and does not count
SETS = ["hardware.workers=1", "hardware.threads=1", f"optim.epochs={EPOCHS}"]


def commands(folder: Path, stage: str) -> tuple[list[str], list[str]]:
    """Of the run on Ray and of the plain loop."""
    kind = "lesions" if stage == "detector" else "slices"
    data = ["--data", str(folder / kind), "--valid", str(folder / f"{kind}-valid")]
    ray = [sys.executable, "-m", "cctmn.cli", "train", stage, *data, "-q", "-m", str(folder / "m")]
    ray += [part for text in SETS for part in ("--set", text)]
    return ray, [sys.executable, "-m", "benchmarks.training", stage, str(folder)]


def plain(folder: Path, stage: str) -> Iterator[float]:
    """Steps per second of each epoch of a loop as anybody would write it."""
    import torch

    torch.set_num_threads(1)
    task, config = training_step.make_task(stage, folder)
    net = task.net
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=config.optim.lr, weight_decay=1e-3)
    cpu, batch = torch.device("cpu"), config.optim.batch_size
    for _ in range(EPOCHS):
        began = time.monotonic()
        order = torch.randperm(task.count).tolist()
        for step in range(0, len(order), batch):
            for index in order[step : step + batch]:
                losses = task.losses(net, [task.read(index)], device=cpu)
                (sum(losses.values()) / batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield len(order) / batch / (time.monotonic() - began)


def measure(folder: Path, stage: str, *, repeats: int) -> Comparison:
    """Seconds per step after the first epoch, the two kinds in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    on_ray, alone = commands(folder, stage)
    for repeat in range(repeats):
        out = folder / f"out-{stage}-{repeat}"
        subprocess.run([*on_ray, "-o", str(out)], check=True)
        lines = (out / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("steps_per_s")
        ours += [1 / float(line.split(",")[column]) for line in lines[2:]]
        said = subprocess.run(
            alone, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        ).stdout
        theirs += [1 / rate for rate in json.loads(said)[1:]]
    return of_samples(f"{stage}, step on Ray against a plain loop", ours, theirs, target=0.95)


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds per step of both stages, so many trainings or steps of each kind in turn."""
    from cctmn.classes import LESION_MODES
    from cctmn.model import checkpoint
    from cctmn.model.card import Arch, Card
    from cctmn.phantom import layouts

    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        for seed, suffix, count in ((1, "", SLICES), (2, "-valid", 1)):
            layouts.write_lesions(here / f"lesions{suffix}", count=count, seed=seed)
            layouts.write_slices(here / f"slices{suffix}", count=count, seed=seed)
        arch = Arch(BACKBONE, TRUNCATION, LESION_MODES["both"], mask_head=True)
        card = Card(name="bench", arch=arch, trained=False)
        checkpoint.save(checkpoint.fresh(arch, seed=0), here / "m", card=card)
        yield from training_step.lines(here, repeats=repeats)
        for stage in ("detector", "classifier"):
            yield measure(here, stage, repeats=repeats)


if __name__ == "__main__":  # the plain loop, in a process of its own
    print(json.dumps(list(plain(Path(sys.argv[2]), sys.argv[1]))))
