"""Benchmarks that can be repeated; each prints ratios of times measured in one run.

From a checkout:
    python jobs/bench.py train     steps per second on Ray Train against a plain loop
    python jobs/bench.py scale     time of ten times as much work against the work
    python jobs/bench.py model     slices per second against torchvision's layers, one thread
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

BACKBONE, TRUNCATION = "resnet18", 1
SLICES, EPOCHS = 8, 4  # the first epoch warms up and does not count
SETS = ["hardware.workers=1", "hardware.threads=1", f"optim.epochs={EPOCHS}"]


def commands(folder: Path, stage: str) -> tuple[list[str], list[str]]:
    """Of the run on Ray and of the plain loop."""
    kind = "lesions" if stage == "detector" else "slices"
    data = ["--data", str(folder / kind), "--valid", str(folder / f"{kind}-valid")]
    ray = [sys.executable, "-m", "cctmn.cli", "train", stage, *data, "-q", "-m", str(folder / "m")]
    ray += [part for text in SETS for part in ("--set", text)]
    return ray, [sys.executable, __file__, "train", "--plain", stage, "--folder", str(folder)]


def plain(folder: Path, stage: str) -> Iterator[float]:
    """Steps per second of each epoch of a loop as anybody would write it."""
    import torch

    from cctmn.config import ClassifierConfig, DetectorConfig
    from cctmn.contract import InputContract
    from cctmn.data.lesions import open_lesions
    from cctmn.data.slices import open_slices
    from cctmn.model import checkpoint
    from cctmn.train.tasks import ClassifierTask, DetectorTask

    torch.set_num_threads(1)
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
        classes = config.classes
        samples = open_slices(str(folder / "slices"), classes=classes).samples
        task = ClassifierTask(start.net, samples, (), contract, config)  # type: ignore[arg-type]
    net = task.net.to(memory_format=torch.channels_last)
    task.train()
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=config.optim.lr, weight_decay=1e-3)
    cpu, batch = torch.device("cpu"), config.optim.batch_size
    for _ in range(EPOCHS):
        began = time.monotonic()
        order = torch.randperm(len(samples)).tolist()
        for step in range(0, len(order), batch):
            for index in order[step : step + batch]:
                losses = task.losses(net, [task.read(index)], device=cpu)
                (sum(losses.values()) / batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield len(order) / batch / (time.monotonic() - began)


def measure(folder: Path, stage: str, *, repeats: int) -> dict[str, float]:
    """Median rates after the first epoch, the two kinds in turn."""
    rates: dict[str, list[float]] = {"ray": [], "plain": []}
    on_ray, alone = commands(folder, stage)
    for repeat in range(repeats):
        out = folder / f"out-{stage}-{repeat}"
        subprocess.run([*on_ray, "-o", str(out)], check=True)
        lines = (out / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("steps_per_s")
        rates["ray"] += [float(line.split(",")[column]) for line in lines[2:]]
        said = subprocess.run(alone, check=True, capture_output=True, text=True).stdout
        rates["plain"] += json.loads(said)[1:]
    ray, one = statistics.median(rates["ray"]), statistics.median(rates["plain"])
    return {"ray_steps_per_s": ray, "plain_steps_per_s": one, "ratio": ray / one}


@click.group()
def main() -> None:
    """Measure ratios on this machine."""


@main.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of each kind, in turn.")
@click.option("--plain", "stage", type=click.Choice(["detector", "classifier"]), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def train(repeats: int, stage: str | None, folder: Path | None) -> None:
    """Compare the steps per second of both stages on Ray with those of a plain loop."""
    if stage is not None:
        assert folder is not None
        print(json.dumps(list(plain(folder, stage))))
        return
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
        for stage in ("detector", "classifier"):
            rates = measure(here, stage, repeats=repeats)
            print(stage, json.dumps({k: round(v, 3) for k, v in rates.items()}), flush=True)


@main.command()
@click.option("--count", default=2_000, show_default=True, help="Slices of the smaller run.")
def scale(count: int) -> None:
    """Compare ten times as many slices with the slices; 10 is linear, less is start-up."""
    from cctmn.phantom import layouts

    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        layouts.write_slices(here / "made", count=20, seed=1)
        pictures = [path.read_bytes() for path in sorted((here / "made").glob("*.png"))]
        seconds = []
        # The first run warms up and does not count.
        for number in (count, count, 10 * count):
            folder = here / str(number)
            folder.mkdir(exist_ok=True)
            for n in range(number):
                (folder / f"{n}.png").write_bytes(pictures[n % len(pictures)])
            command = [sys.executable, "-m", "cctmn.cli", "score", str(folder), "-q", "--dry-run"]
            began = time.monotonic()
            subprocess.run([*command, "-o", str(here / "out")], check=True, capture_output=True)
            seconds.append(time.monotonic() - began)
        print("dry run", json.dumps({"ratio": round(seconds[2] / seconds[1], 2)}), flush=True)


def by_torchvision(net: Any, picture: Any) -> Any:
    """Return the logits of one slice by torchvision's layers, without what `Predictor` replaces."""
    import torch

    from cctmn.model import ranking
    from cctmn.model.inference import normalise_and_pad

    with torch.inference_mode():
        x_3HW, size = normalise_and_pad(picture, device=torch.device("cpu"))
        x_B3HW = x_3HW[None].contiguous(memory_format=torch.channels_last)
        features = net.detector.backbone(x_B3HW)
        [output] = net.detector.box_outputs(x_B3HW, features, sizes=[size])
        candidates = output.candidates()
        ranking.lesions(candidates)
        keep, count = ranking.choose(candidates, count=net.arch.ranked), net.arch.ranked
        rows = ranking.ranked_features(
            candidates.scores_R[keep], deltas_N4=candidates.deltas_R4[keep], count=count
        )
        return net.module_s(rows.flatten()).numpy()


@main.command()
@click.option("--slices", default=12, show_default=True, help="Slices of each model, in turn.")
def model(slices: int) -> None:
    """Compare the predictor with torchvision's layers, on one thread and the same slices."""
    import numpy as np
    import torch

    from cctmn.classes import COVIDX_CLASSES, LESION_MODES
    from cctmn.model import checkpoint
    from cctmn.model.card import Arch
    from cctmn.model.inference import Predictor
    from cctmn.model.roi_align import RoiAlign
    from cctmn.phantom import draw

    class Plain(RoiAlign):
        def forward(self, *args: Any) -> Any:
            return super(RoiAlign, self).forward(*args)

    torch.set_num_threads(1)
    for backbone, truncation in (("resnet18", 1), ("resnet50", 0)):
        arch = Arch(backbone, truncation, LESION_MODES["both"], False, COVIDX_CLASSES, 128, 512)
        ours, theirs = checkpoint.fresh(arch, seed=0).eval(), checkpoint.fresh(arch, seed=0).eval()
        pool: Any = theirs.detector.roi_heads.box_roi_pool  # type: ignore[union-attr]
        pool.__class__ = Plain
        predictor = Predictor(ours)
        seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
        difference = 0.0
        for number in range(slices + 1):
            rng = np.random.default_rng(number)
            hu = draw.visible_slice(draw.Patient.drawn(rng), rng=rng).hu
            picture = np.clip((hu + 1350) * (255 / 1500), 0, 255).astype(np.uint8)
            began = time.perf_counter()
            [prediction] = predictor.predict([picture], areas=False)
            between = time.perf_counter()
            logits = by_torchvision(theirs, picture)
            ended = time.perf_counter()
            if number:  # the first warms up
                seconds["ours"].append(between - began)
                seconds["torchvision"].append(ended - between)
            difference = max(difference, float(np.abs(prediction.logits_C - logits).max()))
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratio = medians["torchvision"] / medians["ours"]
        line = {**medians, "ratio": ratio, "largest_logit_difference": difference}
        print(backbone, json.dumps({k: float(f"{v:.3g}") for k, v in line.items()}), flush=True)


if __name__ == "__main__":
    main()
