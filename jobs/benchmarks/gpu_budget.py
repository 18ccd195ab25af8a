"""What a batch of 16 slices asks of a GPU, counted on a pretended one, against the budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks.comparison import Comparison

# The pretended GPU is a part of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

BATCH = 16
KERNELS, WAITS = 25, 2  # per slice


def counts(backbone: str, truncation: int, *, masks: bool) -> tuple[float, float]:
    """Kernels and waits of the host per slice."""
    from cctmn.classes import COVIDX_CLASSES, LESION_MODES
    from cctmn.model import batched, batched_ranking, checkpoint, roi_align
    from cctmn.model.card import Arch
    from cctmn.model.inference import Predictor
    from tests.model.conftest import made_up
    from tests.model.pretend_gpu import PretendGpu, moved

    ranked, hidden = (256, 1024) if backbone == "resnet50" else (128, 512)
    arch = Arch(backbone, truncation, LESION_MODES["both"], masks, COVIDX_CLASSES, ranked, hidden)
    net = checkpoint.fresh(arch, seed=0).eval()
    gpu = PretendGpu()
    with gpu.entered():
        moved(net)
        for module in (batched, batched_ranking, roi_align):
            mock.patch.object(module, "host_waits", gpu.host_waits).start()
        try:
            predictor, slices = Predictor(net), made_up(BATCH, size=(64, 64))
            predictor.predict(slices[:1], areas=masks)  # makes the anchors
            gpu.reset()
            predictor.predict(slices, areas=masks)
        finally:
            mock.patch.stopall()
    return gpu.kernels.total() / BATCH, gpu.waits.total() / BATCH


def lines(repeats: int) -> Iterator[Comparison]:  # noqa: ARG001 - a count does not vary
    """Kernels and waits per slice of the two models."""
    for name, model, masks in (
        ("ResNet-18 t1", ("resnet18", 1), False),
        ("ResNet-18 t1 with masks", ("resnet18", 1), True),
        ("ResNet-50", ("resnet50", 0), False),
    ):
        kernels, waits = counts(*model, masks=masks)
        yield Comparison(
            f"{name}, kernels of a GPU per slice", kernels, KERNELS, 1.0, unit="kernels"
        )
        yield Comparison(f"{name}, waits for a GPU per slice", waits, WAITS, 1.0, unit="waits")
