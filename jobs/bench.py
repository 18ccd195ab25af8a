"""Benchmarks that can be repeated; each prints ratios of times measured in one run.

From a checkout:
    python jobs/bench.py train     steps per second on Ray Train against a plain loop
    python jobs/bench.py scale     time of ten times as much work against the work
    python jobs/bench.py model     seconds per slice on two cores against torchvision's layers
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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


# --- the model


@dataclass(frozen=True)
class Comparison:
    """One comparison of two things that were timed in turn in this run; less time is better."""

    name: str
    ours: float  # s
    theirs: float  # s
    spread: float  # of ours: interquartile range / median
    target: float  # smallest ratio that is wanted

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.theirs / self.ours

    def as_json(self) -> dict[str, Any]:
        """The fields and what follows from them, with three digits."""
        numbers = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratio}
        numbers |= {"spread": self.spread, "target": self.target}
        rounded = {name: float(f"{value:.3g}") for name, value in numbers.items()}
        return {"name": self.name, **rounded, "ok": self.ratio >= self.target}


def show(lines: list[Comparison], *, as_json: bool) -> None:
    """Print a table, or JSON with the key `lines`."""
    if as_json:
        print(json.dumps({"lines": [line.as_json() for line in lines]}))
        return
    print(f"{'':44} {'ours, s':>9} {'theirs, s':>9} {'ratio':>6} {'target':>6}")
    for line in lines:
        numbers = f"{line.ours:9.3g} {line.theirs:9.3g} {line.ratio:6.2f} {line.target:6.2f}"
        print(f"{line.name:44} {numbers}  {'ok' if line.ratio >= line.target else 'below target'}")


def picture(number: int) -> Any:
    """A slice of a phantom, H x W, uint8."""
    import numpy as np

    from cctmn.phantom import draw

    rng = np.random.default_rng(number)
    hu = draw.visible_slice(draw.Patient.drawn(rng), rng=rng).hu
    return np.clip((hu + 1350) * (255 / 1500), 0, 255).astype(np.uint8)


@functools.cache
def networks(backbone: str, truncation: int) -> tuple[Any, Any]:
    """A predictor, and the same network with torchvision's own RPN and RoIAlign."""
    from cctmn.classes import COVIDX_CLASSES, LESION_MODES
    from cctmn.model import checkpoint
    from cctmn.model.card import Arch
    from cctmn.model.detector import RankedRPN
    from cctmn.model.inference import Predictor
    from cctmn.model.roi_align import RoiAlign
    from cctmn.score.models import keep_freed_memory

    class Align(RoiAlign):
        def forward(self, *args: Any) -> Any:
            return super(RoiAlign, self).forward(*args)

    class RPN(RankedRPN):
        def forward(self, *args: Any) -> Any:
            return super(RankedRPN, self).forward(*args)

    keep_freed_memory()  # helps both
    ranked, hidden = (256, 1024) if backbone == "resnet50" else (128, 512)
    lesions = LESION_MODES["both"]
    arch = Arch(backbone, truncation, lesions, False, COVIDX_CLASSES, ranked, hidden)
    ours, theirs = (checkpoint.fresh(arch, seed=0).eval() for _ in range(2))
    detector: Any = theirs.detector
    detector.roi_heads.box_roi_pool.__class__ = Align
    detector.rpn.__class__ = RPN
    return Predictor(ours), theirs


def timed(kind: str, threads: int, model: tuple[str, int], number: int) -> tuple[float, Any]:
    """Seconds that one slice takes on so many threads, and its logits."""
    import torch

    torch.set_num_threads(threads)
    predictor, net = networks(*model)
    image = picture(number)
    began = time.perf_counter()
    if kind == "ours":
        logits = predictor.predict([image], areas=False)[0].logits_C
    else:
        logits = by_torchvision(net, image)
    return time.perf_counter() - began, logits


def by_torchvision(net: Any, image: Any) -> Any:
    """The logits of one slice by torchvision's layers, eager and in their usual memory layout."""
    import torch

    from cctmn.model import ranking
    from cctmn.model.inference import normalise_and_pad

    with torch.inference_mode():
        x_3HW, size = normalise_and_pad(image, device=torch.device("cpu"))
        features = net.detector.backbone(x_3HW[None])
        [output] = net.detector.box_outputs(x_3HW[None], features, sizes=[size])
        candidates, count = output.candidates(), net.arch.ranked
        ranking.lesions(candidates)
        keep = ranking.choose(candidates, count=count)
        rows = ranking.ranked_features(
            candidates.scores_R[keep], deltas_N4=candidates.deltas_R4[keep], count=count
        )
        return net.module_s(rows.flatten()).numpy()


def compare(name: str, model: tuple[str, int], *, slices: int, target: float) -> Comparison:
    """Time two processes of one thread against one process of one or of two threads.

    A slice of ours takes half the time that it takes each of the two processes.
    """
    import numpy as np

    ours: list[float] = []
    theirs: dict[int, list[float]] = {1: [], 2: []}
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as first,
        ProcessPoolExecutor(1, mp_context=spawn) as second,
    ):
        for number in range(slices + 1):
            alone = {n: first.submit(timed, "theirs", n, model, number).result() for n in theirs}
            both = [pool.submit(timed, "ours", 1, model, number) for pool in (first, second)]
            seconds, logits = both[0].result()
            difference = float(np.abs(logits - alone[1][1]).max())
            if difference > 1e-3:
                text = f"{name}: a logit of slice {number} differs by {difference:.2g}"
                print(text, file=sys.stderr, flush=True)
            if number:  # the first warms up
                ours.append((seconds + both[1].result()[0]) / 4)
                for n, (one, _) in alone.items():
                    theirs[n].append(one)
    low, middle, high = statistics.quantiles(ours, n=4)
    best = min(map(statistics.median, theirs.values()))
    return Comparison(name, middle, best, spread=(high - low) / middle, target=target)


@main.command()
@click.option(
    "--slices",
    type=click.IntRange(min=2),
    default=12,
    show_default=True,
    help="Slices of each model, in turn.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
def model(slices: int, as_json: bool) -> None:
    """Compare the predictor on two cores with torchvision's layers on one or two threads."""
    lines = [
        compare("ResNet-18 t1, float32", ("resnet18", 1), slices=slices, target=2.8),
        compare("ResNet-50, float32", ("resnet50", 0), slices=slices, target=2.0),
    ]
    show(lines, as_json=as_json)


if __name__ == "__main__":
    main()
