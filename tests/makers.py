"""Small synthetic inputs: slices, archives around them, and a scorer that is no network."""

from __future__ import annotations

import functools
import io
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
from PIL import Image

from cctmn.contract import InputContract
from cctmn.phantom import draw, layouts
from cctmn.score.scorer import ImageArray, ModelSource


def png(seed: int, *, side: int = 64) -> bytes:
    """An 8-bit grey picture with a bright body and a darker inside."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    grey = np.where(x**2 + y**2 < 0.8, 200, 20) - 120 * (np.abs(x) < 0.5) * (np.abs(y) < 0.4)
    grey = np.clip(grey + rng.integers(-15, 15, grey.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def dicom(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    patient = draw.Patient.drawn(rng)
    hu = draw.slice_of(patient, height=rng.uniform(), rng=rng).hu
    syntax = layouts.SYNTAXES[seed % len(layouts.SYNTAXES)]
    return layouts.dicom_bytes(hu, patient=0, number=seed, seed=1, syntax=syntax)


def zipped(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class StandIn:
    """A scorer whose answer is a plain function of the pixels, after an optional sleep.

    It imports no torch, so that its processes start quickly.
    """

    def __init__(self, sleep_s: float = 0.0, gpu: bool = False) -> None:
        self._sleep_s = sleep_s

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[SimpleNamespace]:
        time.sleep(self._sleep_s * len(images))
        return [self._one(image) for image in images]

    @staticmethod
    def _one(image: ImageArray) -> SimpleNamespace:
        height, width = image.shape
        quarters = [image[: height // 2].mean(), image[height // 2 :].mean(), image.std()]
        return SimpleNamespace(
            logits_C=np.array(quarters, np.float32) / 100,
            boxes_M4=np.array([[0, 0, width / 2, height / 4]], np.float32),
            scores_M=np.array([image.mean() / 255], np.float32),
            labels_M=np.array([1]),
            mask_px_M=None,
            mask_logits_M1SS=None,
            ranked_features_N5=np.tile(np.float32([0.5, 0, 0, 0, 0]), (3, 1)),
            ranked_boxes_N4=np.tile(np.float32([0, 0, 1, 1]), (3, 1)),
        )


def stand_in(*, sleep_s: float = 0.0, model_id: str = "standin") -> ModelSource:
    return ModelSource(
        model_id=model_id,
        image_classes=("control", "pneumonia", "covid"),
        lesion_classes=("lesion",),
        activation="sigmoid",
        input=InputContract(size_px=64, max_size_px=128).to_card(),
        identity={"model_id": model_id, "classes": ("a", "b")},
        load=functools.partial(StandIn, sleep_s),
    )
