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

FLOAT32, BFLOAT16 = "float32", "bfloat16"
THEIRS = "torchvision"
SMALL, LARGE = ("resnet18", 1), ("resnet50", 0)  # backbone and truncation
PEAK_CONVOLUTIONS = 3


def picture(number: int) -> Any:
    """A slice of a phantom with COVID-19 in the window of a model, H x W, uint8."""
    import numpy as np

    from cctmn.contract import InputContract
    from cctmn.phantom import draw
    from cctmn.read.preprocess import window

    rng = np.random.default_rng(number)
    patient = draw.Patient.drawn(rng, finding="covid")
    return window(draw.visible_slice(patient, rng=rng).hu, InputContract())


@functools.cache
def networks(backbone: str, truncation: int) -> tuple[dict[str, Any], Any]:
    """A predictor of each precision, and the same network with torchvision's RPN and RoIAlign."""
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
    kinds: tuple[Any, ...] = (FLOAT32, BFLOAT16)
    return {kind: Predictor(ours, precision=kind) for kind in kinds}, theirs


def timed(kind: str, threads: int, model: tuple[str, int], number: int) -> tuple[float, Any]:
    """Seconds that one slice takes on so many threads, and its logits."""
    import torch

    torch.set_num_threads(threads)
    predictors, net = networks(*model)
    image = picture(number)
    began = time.perf_counter()
    if kind == THEIRS:
        logits = by_torchvision(net, image)
    else:
        logits = predictors[kind].predict([image], areas=False)[0].logits_C
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


def at_peak(number: int) -> tuple[float, float]:
    """Seconds of a slice by ResNet-50 on one thread, and of its convolutions at the core's peak.

    The peak is the rate of oneDNN's convolution of 3 x 3 with 256 channels, and the work is that of
    the network's convolutions without Winograd's algorithm, which makes do with less.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cctmn.model.onednn import OneDnnConv

    seconds, _ = timed(FLOAT32, 1, LARGE, number)
    _, net = networks(*LARGE)
    counter = FlopCounterMode(display=False)
    with counter:
        by_torchvision(net, picture(number))
    work = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "convolution" in str(operation)
    )
    layer = OneDnnConv(torch.nn.Conv2d(256, 256, 3, padding=1))
    x_BCHW = torch.rand(1, 256, 128, 128).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer(x_BCHW)
        began = time.perf_counter()
        for _ in range(PEAK_CONVOLUTIONS):
            layer(x_BCHW)
        elapsed_s = time.perf_counter() - began
    rate = PEAK_CONVOLUTIONS * 2 * 9 * 256 * 256 * 128 * 128 / elapsed_s
    return seconds, work / rate


@functools.cache
def detector_with_masks() -> Any:
    """A predictor of the detector in the demo model, a ResNet-18 with masks."""
    from cctmn.model import checkpoint
    from cctmn.model.inference import Predictor
    from cctmn.model.memory import keep_freed_memory

    keep_freed_memory()
    net: Any = checkpoint.load("cctmn:demo").net
    return Predictor(net.detector, threads=1)


def with_masks(number: int) -> tuple[float, float]:
    """Seconds of a slice with and without masks."""
    predictor, image = detector_with_masks(), picture(number)
    times = []
    for masks in (True, False):
        began = time.perf_counter()
        predictor.predict([image], areas=masks, masks=masks)
        times.append(time.perf_counter() - began)
    return times[0], times[1]


def process() -> ProcessPoolExecutor:
    """Return one process, which keeps its models."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def compare(
    name: str, model: tuple[str, int], *, slices: int, targets: dict[str, float]
) -> Iterator[Comparison]:
    """Time two processes of one thread against one process of one or of two threads.

    A slice of ours takes half the time that it takes each of the two processes. Each precision of
    `targets` is a line.
    """
    import numpy as np

    ours: dict[str, list[float]] = {kind: [] for kind in targets}
    theirs: dict[int, list[float]] = {1: [], 2: []}
    with process() as first, process() as second:
        for number in range(slices + 1):
            alone = {n: first.submit(timed, THEIRS, n, model, number).result() for n in theirs}
            for kind in targets:
                both = [pool.submit(timed, kind, 1, model, number) for pool in (first, second)]
                seconds, logits = both[0].result()
                difference = float(np.abs(logits - alone[1][1]).max())
                if difference > 1e-3 and kind == FLOAT32:
                    text = f"{name}: a logit of slice {number} differs by {difference:.2g}"
                    print(text, file=sys.stderr, flush=True)
                if number:  # the first warms up
                    ours[kind].append((seconds + both[1].result()[0]) / 4)
            if number:
                for n, (one, _) in alone.items():
                    theirs[n].append(one)
    best = min(theirs.values(), key=statistics.median)
    for kind, target in targets.items():
        yield of_samples(f"{name}, {kind}, per slice", ours[kind], best, target=target)


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds per slice of the two models, each on so many slices in turn."""
    small, large = ("resnet18", 1), ("resnet50", 0)
    yield from compare("ResNet-18 t1", small, slices=repeats, targets={FLOAT32: 2.8, BFLOAT16: 5.0})
    yield from compare("ResNet-50", large, slices=repeats, targets={FLOAT32: 2.0, BFLOAT16: 3.5})
    for name, measure, target in (
        ("ResNet-50, float32, against its convolutions at peak", at_peak, 0.7),
        ("ResNet-18 detector, with masks against without", with_masks, 0.8),
    ):
        with process() as alone:
            pairs = [alone.submit(measure, n).result() for n in range(repeats + 1)]
        ours, theirs = zip(*pairs[1:], strict=True)  # the first warms up
        yield of_samples(name, ours, theirs, target=target)
