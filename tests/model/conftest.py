"""Shared by the tests of the model room: slices and small nets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cctmn.model.card import Arch

BOTH = ("ggo", "consolidation")
COVIDX = ("control", "pneumonia", "covid")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def grey(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def made_up(
    count: int, *, size: tuple[int, int] = (96, 96), seed: int = 7
) -> list[NDArray[np.uint8]]:
    """Slices with some structure: smooth blobs, so that neither boxes nor scores are all alike."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 1, 8, 8)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0]
    return list(fine.numpy().astype(np.uint8))


def arch(backbone: str = "resnet18", truncation: int = 1, *, masks: bool = False, **other) -> Arch:
    """A detector's Arch, or with image_classes a classifier's."""
    return Arch(backbone, truncation, other.pop("lesion_classes", BOTH), masks, **other)


def classifier_arch(backbone: str = "resnet18", truncation: int = 1, **other) -> Arch:
    values = {"image_classes": COVIDX, "ranked": 16, "hidden": 8} | other
    return arch(backbone, truncation, **values)


def same(left, right) -> bool:
    """Bit-identical predictions."""
    for field in left.__dataclass_fields__:
        a, b = getattr(left, field), getattr(right, field)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            return False
    return True


EVERY = [("resnet18", t) for t in (0, 1, 2)] + [("resnet34", t) for t in (0, 1, 2)]
EVERY.append(("resnet50", 0))
