"""The predictions and rates of a GPU, or in small of the CPU, for jobs/gpu_check.py."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.model import picture


def available() -> bool:
    """Whether PyTorch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def check(model: str, *, device: str, slices: int, largest: int) -> dict[str, Any]:
    """Differences of logits from the CPU's, and slices per second of each batch size.

    In between, the host may wait for the GPU only where `host_waits` allows it.
    """
    import torch

    from cctmn.model.checkpoint import load
    from cctmn.model.inference import Predictor
    from cctmn.score.models import set_float32

    on_gpu = device == "cuda"
    images = [picture(number) for number in range(slices)]
    expected = _logits(Predictor(load(model).net, true_batches=False), images, batch=1)
    parity, rates = [], []
    precisions = ("float32 ieee", "float32 tf32", "bfloat16")
    for precision in precisions if on_gpu else precisions[:1]:
        set_float32("tf32" if precision == "float32 tf32" else "ieee")
        kind: Any = precision.split()[0]
        predictor = Predictor(load(model).net, device=device, precision=kind, true_batches=True)
        predictor.predict(images[:1])  # starts the libraries
        if on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        try:
            by_batch = {n: _logits(predictor, images, batch=n) for n in (1, 16)}
            backwards = _logits(predictor, images[::-1], batch=16)[::-1]
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        for name, logits in (
            ("batch 1", by_batch[1]),
            ("batch 16", by_batch[16]),
            ("batch 16, in reverse order", backwards),
        ):
            parity.append({"name": f"{precision}, {name}"} | _compared(expected, logits))
    set_float32("ieee")
    predictor = Predictor(load(model).net, device=device, true_batches=True)
    batch = 1
    while batch <= largest:
        rates.append(_rate(predictor, [images[i % slices] for i in range(batch)], on_gpu=on_gpu))
        batch *= 2
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    return {"device": name, "torch": torch.__version__, "parity": parity, "rates": rates}


def _logits(predictor: Any, images: list[Any], *, batch: int) -> Any:
    import numpy as np

    done: list[Any] = []
    for first in range(0, len(images), batch):
        done += [one.logits_C for one in predictor.predict(images[first : first + batch])]
    return np.stack(done)


def _compared(expected: Any, actual: Any) -> dict[str, Any]:
    import numpy as np

    difference = np.abs(expected - actual).max(1)
    same = int((expected.argmax(1) == actual.argmax(1)).sum())
    return {
        "largest": float(difference.max()),
        "median": float(np.median(difference)),
        "same_class": f"{same}/{len(expected)}",
    }


def _rate(predictor: Any, images: list[Any], *, on_gpu: bool) -> dict[str, Any]:
    """Slices per second of the second of two passes; a pass ends with its download."""
    import torch

    predictor.predict(images)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    predictor.predict(images)
    elapsed_s = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    rate = len(images) / elapsed_s
    return {"batch": len(images), "slices_per_s": rate, "peak_gib": peak}
