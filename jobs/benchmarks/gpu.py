"""The predictions and rates of a GPU, or in small of the CPU, for jobs/gpu_check.py."""

from __future__ import annotations

import math
import time
from typing import Any

from benchmarks.model import picture


def available() -> bool:
    """Whether PyTorch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def check(model: str, *, device: str, slices: int, largest: int, folder: str) -> dict[str, Any]:
    """Differences of logits from the CPU's, and slices per second of each batch size.

    The slices are those of a folder, or of phantoms if that is "". While predictions are compared,
    the host may wait for the GPU only where `host_waits` allows it.
    """
    import numpy as np
    import torch

    from cctmn.model.checkpoint import load
    from cctmn.model.inference import Predictor
    from cctmn.score.models import set_float32

    on_gpu = device == "cuda"
    images = _images(folder, model)[:slices] if folder else list(map(picture, range(slices)))
    expected = _logits(Predictor(load(model).net, true_batches=False), images, batch=1)
    order = np.random.default_rng(0).permutation(len(images))
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
            shuffled = _logits(predictor, [images[i] for i in order], batch=16)
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
        for name, logits in (
            ("batch 1", by_batch[1]),
            ("batch 16", by_batch[16]),
            ("batch 16, shuffled", shuffled[np.argsort(order)]),
        ):
            parity.append({"name": f"{precision}, {name}"} | _compared(expected, logits))
    set_float32("ieee")
    predictor = Predictor(load(model).net, device=device, true_batches=True)
    batch = 1
    while batch <= largest:
        of_batch = [images[i % len(images)] for i in range(batch)]
        rates.append(_rate(predictor, of_batch, on_gpu=on_gpu))
        batch *= 2
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    return {"device": name, "torch": torch.__version__, "parity": parity, "rates": rates}


def _images(folder: str, model: str) -> list[Any]:
    """Return the slices of a folder that can be scored, as the model wants them."""
    import numpy as np
    import pyarrow as pa

    from cctmn.contract import InputContract
    from cctmn.errors import InputError
    from cctmn.model.card import read_card
    from cctmn.read import inventory
    from cctmn.score.prepare import prepare

    todo = pa.concat_tables(inventory.index([folder], key=b""))
    contract = InputContract.from_card(dict(read_card(model).input))
    rows = prepare(todo, contract=contract, key=b"", threads=1).to_pylist()
    images = [
        np.frombuffer(row["pixels"], np.uint8).reshape(row["input_rows"], row["input_cols"])
        for row in rows
        if not row["error_code"]
    ]
    if len(images) < 2:
        raise InputError("has fewer than two slices that can be scored", folder)
    return images


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
    return {
        "batch": len(images),
        "slices_per_s": len(images) / elapsed_s,
        "peak_gib": peak,
        "busy": _busy(predictor, images) if on_gpu else 0.0,
    }


def _busy(predictor: Any, images: list[Any]) -> float:
    """Return the fraction of the time of a pass in which the GPU runs a kernel or a copy."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        began = time.perf_counter()
        predictor.predict(images)
        torch.cuda.synchronize()
        elapsed_us = 1e6 * (time.perf_counter() - began)
    on_gpu = [one.time_range for one in profiled.events() if one.device_type.name == "CUDA"]
    return covered([(span.start, span.end) for span in on_gpu]) / elapsed_us


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of what (begin, end) spans cover together; overlaps count once."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
