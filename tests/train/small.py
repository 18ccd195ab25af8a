"""Small things to train on: pictures of 128 px with lesions, nets built in no time, hooks."""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cctmn.classes import COVIDX_CLASSES, LESION_MODES
from cctmn.contract import InputContract
from cctmn.model import checkpoint
from cctmn.model.card import Arch, Card
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.phantom.draw import BACKGROUND, CLEAN_LUNG, CONSOLIDATION, GGO
from cctmn.phantom.layouts import PREFIXES
from cctmn.train.loop import History

SIZE_PX = 128
INPUT = {**InputContract().to_card(), "size_px": SIZE_PX, "max_size_px": 2 * SIZE_PX}
GREY = {BACKGROUND: 215, CLEAN_LUNG: 80, GGO: 150, CONSOLIDATION: 240}
# Lesions of a class of COVIDx-CT: value and number
FOUND = ((GGO, 0), (CONSOLIDATION, 1), (GGO, 2))


def picture(rng: np.random.Generator, *, lesions: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its mask: two lungs, and in them round lesions of these values."""
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for middle in (38, 90):
        mask[((x - middle) / 22) ** 2 + ((y - 64) / 40) ** 2 < 1] = CLEAN_LUNG
    # each in a quarter of its own, so that no two touch
    quarters = rng.permutation([(row, col) for row in (44, 84) for col in (38, 90)])
    for value, quarter in zip(lesions, quarters, strict=False):
        row, col = quarter + rng.integers(-3, 4, 2)
        radius = rng.uniform(7, 12)  # more than the 100 px that a lesion needs
        mask[(x - col) ** 2 + (y - row) ** 2 < radius**2] = value
    grey = np.vectorize(GREY.get)(mask) + rng.integers(-15, 15, mask.shape)
    return grey.clip(0, 255).astype(np.uint8), mask


def write_lesions(folder: Path, *, count: int, seed: int, empty: Collection[int] = ()) -> Path:
    """Slices in CNCB's layout, two a patient; those of the indices `empty` show no lesion."""
    for part in ("imgs", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        grey, mask = picture(rng, lesions=() if i in empty else (GGO, CONSOLIDATION, GGO))
        name = f"{1000 * seed + i // 2}_{i % 2}.png"
        Image.fromarray(grey).save(folder / "imgs" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    return folder


def write_slices(folder: Path, *, count: int, seed: int, classes: int = 3) -> Path:
    """Slices named as in COVIDx-CT and its split.txt, a patient each, the classes in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        label = i % classes
        value, lesions = FOUND[label]
        name = f"{list(PREFIXES.values())[label]}_{1000 * seed + i}_1_0001.png"
        Image.fromarray(picture(rng, lesions=[value] * lesions)[0]).save(folder / name)
        lines.append(f"{name} {label} 0 0 {SIZE_PX} {SIZE_PX}\n")
    (folder / "split.txt").write_text("".join(lines))
    return folder


def contract() -> InputContract:
    """Of these pictures: nothing is resized."""
    return InputContract.from_card(INPUT)


def small_arch(**other: Any) -> Arch:
    """A detector's with masks, as small as there is."""
    smallest = {"backbone": "resnet18", "truncation": 2, "mask_head": True}
    return Arch(**{**smallest, "lesion_classes": LESION_MODES["both"], **other})


def small_card(arch: Arch | None = None, **other: Any) -> Card:
    """The card of an untrained net for these pictures."""
    values = {"name": "small", "trained": False, "input": INPUT} | other
    return Card(arch=arch or small_arch(), **values)


def detector_folder(tmp_path: Path, *, seed: int = 1, **other: Any) -> Path:
    """An untrained small detector to go on from; `other` goes to its Arch."""
    card = small_card(small_arch(**other))
    folder = tmp_path / "detector"
    checkpoint.save(fresh(card.arch, seed=seed), folder, card=card)
    return folder


def fresh(arch: Arch, *, seed: int) -> Any:
    """A copy of a net that is drawn once: most tests want a new one."""
    return copy.deepcopy(_drawn(arch, seed))


@functools.cache
def _drawn(arch: Arch, seed: int) -> checkpoint.Net:
    return checkpoint.fresh(arch, seed=seed)


def quiet_detector(**other: Any) -> Detector:
    """A small untrained net that finds nothing: the masks of 128 lesions take longer than all."""
    net = fresh(small_arch(**other), seed=1)
    with torch.no_grad():
        net.roi_heads.box_predictor.cls_score.bias[0] = 4
    return net


def classifier(*, seed: int = 1, **other: Any) -> Classifier:
    """A small untrained net of stage 2; `other` goes to its Arch."""
    values = {"image_classes": COVIDX_CLASSES, "mask_head": False, "ranked": 16, "hidden": 8}
    return fresh(small_arch(**{**values, **other}), seed=seed)


@dataclass
class Kept:
    """The loop's hooks: checkpoints below a folder, the rest in memory."""

    folder: Path
    epochs: list[int] = field(default_factory=list)  # of which there is a checkpoint
    shown: list[dict[str, Any]] = field(default_factory=list)

    def restore(self) -> list[Path]:
        return [self.folder / str(epoch) for epoch in reversed(self.epochs)]

    def last(self) -> Path:
        return self.restore()[0]

    def report(self, history: History, written: tempfile.TemporaryDirectory[str] | None) -> None:
        if written is not None:
            with written as temporary:
                epoch = len(history.rows)
                shutil.rmtree(self.folder / str(epoch), ignore_errors=True)
                shutil.copytree(temporary, self.folder / str(epoch))
                self.epochs = sorted({*self.epochs, epoch})

    def progress(self, **now: Any) -> None:
        self.shown.append(now)
