"""Slices with lesion masks, as the CNCB data set has them.

The class of a lesion is the value of its mask and nothing else. Slices that cannot be paired or
read are listed as issues.

Reads: a folder with imgs/PATIENT_SLICE.jpg and masks/PATIENT_SLICE.png, local or on S3.
Returns: samples paired by name, and the model's input with one mask and label per lesion.

Shapes: M lesions, H x W px of the model's input.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from cctmn import store
from cctmn.classes import LESION_MODES
from cctmn.contract import InputContract
from cctmn.data.files import list_images, read_text, stem
from cctmn.data.issues import DatasetIssues, filter_readable, first_few, require_samples
from cctmn.errors import DataError, InputError, ObjectError, SliceError, StoreError
from cctmn.read.decode import open_image, sniff
from cctmn.read.picture import open_picture
from cctmn.read.preprocess import to_input
from cctmn.read.slice import Slice
from cctmn.store import ObjectInfo

__all__ = [
    "LesionSample",
    "LesionSet",
    "LesionSlice",
    "check_lesions",
    "open_lesions",
    "read_lesions",
    "read_truth",
]

LAYOUT: Final = "a lesion set is DIR/imgs/PATIENT_SLICE.jpg and DIR/masks/PATIENT_SLICE.png"
# Values of a CNCB mask (method.md, stage 1); 0 is background, as is 1, clean lung.
MASK_VALUES: Final[Mapping[str, tuple[int, ...]]] = {
    "ggo": (2,),
    "consolidation": (3,),
    "lesion": (2, 3),
}
_HIGHEST_VALUE: Final = 3
DROPPED_PX: Final = 100  # a component of this many px or fewer is not a lesion (method.md, stage 1)
# Neighbours by a corner are one lesion: as in the author's data, and with edges alone a thin
# diagonal streak falls apart into pieces that the rule above would drop.
_NEIGHBOURS: Final = np.ones((3, 3), bool)
_PNG_DEPTH, _PNG_COLOR = 24, 25  # bytes of the file: both stand in the first chunk
_PNG_GREY, _PNG_PALETTE = 0, 3  # colour types


class LesionSample(NamedTuple):
    """An image and its mask."""

    name: str
    image: str  # URI, as is the mask
    mask: str
    patient: str
    labels: tuple[int, ...] = ()  # of its lesions, from 1, each once; known after `check_lesions`


@dataclass(frozen=True)
class LesionSet:
    """Samples in order of their names, and what was left out."""

    samples: tuple[LesionSample, ...]
    issues: DatasetIssues


@dataclass(frozen=True, eq=False)
class LesionSlice:
    """One slice as the detector is trained on it."""

    pixels: npt.NDArray[np.uint8]  # H x W
    masks_MHW: npt.NDArray[np.uint8]  # 0 or 1
    labels_M: npt.NDArray[np.int64]  # from 1, into the lesion classes


def open_lesions(folder: str, *, names: str | None = None) -> LesionSet:
    """Pair the images and masks of the folder, or of the names that the file `names` lists.

    Raises DataError if a folder or list is missing, two images share a name, or nothing pairs up.
    """
    images = _by_stem(store.join(folder, "imgs"), suffixes=(".jpg", ".jpeg", ".png"))
    masks = _by_stem(store.join(folder, "masks"), suffixes=(".png",))
    wanted = sorted(images.keys() | masks.keys() if names is None else _read_names(names))
    samples, unreadable = [], []
    for name in wanted:
        if name not in images or name not in masks:
            continue
        image, mask = (_only(by_stem[name], name=name) for by_stem in (images, masks))
        if image.error_code or mask.error_code:
            unreadable.append((name, image.error_code or "mask_unreadable"))
        else:
            patient = name.rpartition("_")[0] or name
            samples.append(LesionSample(name, image.uri, mask.uri, patient))
    issues = DatasetIssues(
        no_mask=tuple(n for n in wanted if n in images and n not in masks),
        no_image=tuple(n for n in wanted if n in masks and n not in images),
        missing=tuple(n for n in wanted if n not in masks and n not in images),
        unreadable=tuple(unreadable),
    )
    return LesionSet(require_samples(samples, issues=issues, where=folder), issues)


def read_lesions(
    sample: LesionSample, *, lesion_classes: tuple[str, ...], contract: InputContract
) -> LesionSlice:
    """Decode the image just as scoring does, and its mask into lesions; there may be none.

    Raises SliceError if the image or its mask is broken, ObjectError if the image cannot be read.
    """
    slice_, lesions, labels_M = _read(sample, lesion_classes)
    pixels = to_input(slice_, contract).pixels
    lesions = _nearest(slice_.turn.apply(lesions), shape=pixels.shape)
    masks_MHW = _apart(lesions, len(labels_M))
    seen_M = masks_MHW.any(axis=(1, 2))  # a much larger image may lose a thin lesion
    return LesionSlice(pixels, masks_MHW[seen_M], labels_M[seen_M])


def read_truth(
    sample: LesionSample, *, lesion_classes: tuple[str, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The lesions on the image as stored: masks M x H x W and labels; M may be 0.

    Raises SliceError as read_lesions does.
    """
    _, lesions, labels_M = _read(sample, lesion_classes)
    return _apart(lesions, len(labels_M)), labels_M


def check_lesions(
    opened: LesionSet, *, lesion_classes: tuple[str, ...], contract: InputContract, threads: int
) -> LesionSet:
    """Read all slices once; keep those that can be read and have a lesion of these classes.

    The kept samples know the labels of their lesions.
    """
    if lesion_classes not in LESION_MODES.values():
        known = " or ".join(map(str, LESION_MODES.values()))
        raise DataError(f"lesion classes {lesion_classes} are not known; use {known}")

    labels: dict[str, tuple[int, ...]] = {}

    def has_lesion(sample: LesionSample) -> bool:
        read = read_lesions(sample, lesion_classes=lesion_classes, contract=contract)
        labels[sample.name] = tuple(sorted(set(read.labels_M.tolist())))
        return len(read.labels_M) > 0

    kept, issues = filter_readable(
        opened.samples, issues=opened.issues, read=has_lesion, threads=threads
    )
    kept = tuple(sample._replace(labels=labels[sample.name]) for sample in kept)
    return LesionSet(kept, issues)


def _by_stem(folder: str, *, suffixes: tuple[str, ...]) -> dict[str, list[ObjectInfo]]:
    by_stem: dict[str, list[ObjectInfo]] = {}
    for name, info in list_images(folder, suffixes=suffixes, hint=LAYOUT).items():
        if "/" not in name:
            by_stem.setdefault(stem(name), []).append(info)
    return by_stem


def _only(infos: list[ObjectInfo], *, name: str) -> ObjectInfo:
    if len(infos) > 1:
        raise DataError(
            f"one of {len(infos)} images of one name; keep one of them", infos[0].uri, name
        )
    return infos[0]


def _read_names(place: str) -> Collection[str]:
    names = [stem(line.strip()) for line in read_text(place).splitlines() if line.strip()]
    if not names:
        raise DataError("holds no name; write one name per line", place)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError("holds names twice; keep one line per name", place, first_few(twice))
    return names


def _read_mask(uri: str) -> npt.NDArray[np.uint8]:
    """The values as stored: grey of 8 bits, or indices of a palette of any colours."""
    try:
        data = store.read_all(uri)
        if sniff(data[:512]) != "png":
            raise SliceError("mask_unreadable")
        open_picture(data, kind="png")  # refuses what is cut or damaged
        # Pillow stretches grey of fewer bits to 0..255; indices it leaves alone.
        color, depth = data[_PNG_COLOR], data[_PNG_DEPTH]
        if color != _PNG_PALETTE and (color, depth) != (_PNG_GREY, 8):
            raise SliceError("mask_unreadable")
        return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
    except (StoreError, InputError):  # of the storage, not of the mask
        raise
    except (ObjectError, SliceError) as error:
        other_size = error.code in ("too_small", "too_large")
        raise SliceError("mask_size" if other_size else "mask_unreadable") from None
    except Exception:  # noqa: BLE001 - the slice boundary; libraries' texts may hold names
        raise SliceError("mask_unreadable") from None


def _read(
    sample: LesionSample, lesion_classes: tuple[str, ...]
) -> tuple[Slice, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The image, the picture of its lesions' numbers (both as stored), and their labels."""
    slice_ = open_image(store.read_all(sample.image)).frame(0)
    values = _read_mask(sample.mask)
    if values.shape != (slice_.rows, slice_.cols):
        raise SliceError("mask_size")
    if values.max() > _HIGHEST_VALUE:
        raise SliceError("mask_value")
    return slice_, *_lesions(values, lesion_classes)


def _apart(lesions: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.uint8]:
    """One mask of 0 and 1 for each number from 1."""
    numbers_M = np.arange(1, count + 1)
    return (lesions == numbers_M[:, None, None]).astype(np.uint8)


def _lesions(
    values: npt.NDArray[np.uint8], lesion_classes: tuple[str, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number the lesions of the mask from 1; return that picture and the label of each."""
    numbers = np.zeros(values.shape, np.int32)
    labels: list[int] = []
    for label, name in enumerate(lesion_classes, start=1):
        components, _ = ndimage.label(np.isin(values, MASK_VALUES[name]), _NEIGHBOURS)
        kept = np.bincount(components.ravel()) > DROPPED_PX
        kept[0] = False  # background
        renumbered = np.where(kept, kept.cumsum() + len(labels), 0)
        numbers += renumbered[components].astype(np.int32)  # classes do not overlap
        labels += [label] * int(kept.sum())
    return numbers, np.array(labels, np.int64)


def _nearest(image: npt.NDArray[Any], *, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Resize by the nearest pixel; centres of px are at halves, as Pillow has them."""
    rows, cols = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, image.shape, strict=True)
    )
    return image[rows[:, None], cols]
