"""The predictor on all cores against torchvision's layers put together as the author does."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.comparison import Comparison, of_samples


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
    from cctmn.model.memory import keep_freed_memory
    from cctmn.model.roi_align import RoiAlign

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
    best = min(theirs.values(), key=statistics.median)
    return of_samples(name, ours, best, target=target)


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds per slice of the two models, each on so many slices in turn."""
    yield compare("ResNet-18 t1, float32, per slice", ("resnet18", 1), slices=repeats, target=2.8)
    yield compare("ResNet-50, float32, per slice", ("resnet50", 0), slices=repeats, target=2.0)
