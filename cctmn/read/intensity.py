"""What a slice is, and how it becomes the model's input.

In: a Slice (Hounsfield units or 8-bit grey). Out: the uint8 picture that the card's contract asks
for, its scales, and the flags and errors that the values alone can tell. The window is the card's
and never the header's, whose first entry is soft tissue in every real file we saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from cctmn.errors import ModelError, SliceError

AIR_HU: Final = -1024.0
# Outside of these no CT slice of a body has values (inputs.md, 901 slices of 117 files).
LOWEST_HU: Final = -4200.0
HIGHEST_HU: Final = 32000.0
_MAX_MEDIAN_HU: Final = 1000.0
_BELOW_HU: Final = -300.0  # lung, air and fat's darkest; every slice has some
_MIN_BELOW_FRACTION: Final = 0.02
_MIN_GREY_LEVELS: Final = 8

_MIN_SIDE_PX: Final = 64  # a lung of 20 px holds no lesion
_SMALL_SIDE_PX: Final = 256
_MAX_SIDE_PX: Final = 8192
_MAX_PIXELS: Final = 4096 * 4096  # CT matrices end at 2048 x 2048

_CHECK_SIDE_PX: Final = 128  # the checks look at every 4th pixel of 512
_AIR_HU: Final = -500.0  # half way from lung to tissue
_AIR_GREY: Final = 144.0  # the same in the lung window
# Lung (air that does not touch the border, opened by 3 x 3 at 128 px) as a fraction of the body.
# Measured on the corpus and 25 other slices: head 0.03, face 0.03, shoulder 0.001 to 0.018, liver
# dome 0.00 to 0.036; apex 0.107, lungs white with COVID-19 0.093, all others above 0.15.
_MIN_LUNG_FRACTION: Final = 0.05
# Median grey of a picture's lungs and tissue, measured on the same: 73 to 115, 210 to 236. A window
# of -1000..400 puts lung at 27, one of -1350..1000 tissue at 151, a soft-tissue one lung at 0.
_MIN_LUNG_GREY: Final = 45.0
_MIN_TISSUE_GREY: Final = 190.0
_MAX_BLACK_FRACTION: Final = 0.4  # 0.21 are the corners of a round field of view; soft tissue: 0.56
_MAX_BLANK_RUN: Final = 0.25  # of a side, of equal rows or columns; 0.11 at most in whole pictures
_MIN_PART: Final = 0.05  # a CT picture has both air and tissue
_MAX_ASPECT: Final = 2.0  # CT matrices are square; crops to the body reach 1.6


@dataclass(frozen=True)
class Turn:
    """How the stored image was turned: transposed first, then flipped."""

    transpose: bool = False
    flip_rows: bool = False  # first row becomes last
    flip_cols: bool = False

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the turned image."""
        turned = stored.T if self.transpose else stored
        if self.flip_rows:
            turned = turned[::-1]
        if self.flip_cols:
            turned = turned[:, ::-1]
        return np.ascontiguousarray(turned)

    def undo(self, turned: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the stored image that was turned."""
        stored = turned[:, ::-1] if self.flip_cols else turned
        stored = stored[::-1] if self.flip_rows else stored
        return np.ascontiguousarray(stored.T if self.transpose else stored)

    def boxes_to_stored(
        self, boxes: npt.NDArray[np.floating[Any]], *, rows: int, cols: int
    ) -> npt.NDArray[np.float32]:
        """Map x0 y0 x1 y1 from the turned image to the stored one of rows x cols.

        Boxes are edges, not pixel centres: x runs from 0 to the width.
        """
        height, width = (cols, rows) if self.transpose else (rows, cols)
        x0, y0, x1, y1 = np.asarray(boxes, np.float32).reshape(-1, 4).T
        if self.flip_cols:
            x0, x1 = width - x1, width - x0
        if self.flip_rows:
            y0, y1 = height - y1, height - y0
        if self.transpose:
            x0, y0, x1, y1 = y0, x0, y1, x1
        return np.stack([x0, y0, x1, y1], axis=1)


@dataclass(frozen=True)
class Slice:
    """One decoded slice in the usual axial display: row 0 anterior, column 0 patient right."""

    pixels: npt.NDArray[np.float32]  # H x W
    unit: Literal["hu", "grey8"]
    turn: Turn
    rows: int  # px, of the stored image; so are cols and the spacings
    cols: int
    spacing_row_mm: float | None  # distance between rows
    spacing_col_mm: float | None
    slice_z_mm: float | None
    study_uid: str | None
    series_uid: str | None
    patient_id: str | None
    flags: frozenset[str]


@dataclass(frozen=True)
class InputContract:
    """What the model's card says about its input."""

    size_px: int = 512  # the short side
    max_size_px: int = 1024  # the long side is at most this
    window_center_hu: float = -600.0
    window_width_hu: float = 1500.0

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> InputContract:
        """Read the `input` table of a card; a key not known here might change the input."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(card) - known - _DESCRIPTIVE_KEYS)
        if unknown:
            raise ModelError(
                f"card: unknown input key {unknown[0]!r}; this model needs a newer cctmn"
            )
        return cls(**{key: card[key] for key in known & set(card)})


# Keys that tell a reader what this module or the model's own weights do anyway.
_DESCRIPTIVE_KEYS: Final = frozenset({"quantise", "resize", "mean", "std"})


@dataclass(frozen=True)
class ModelInput:
    """The picture that the model sees, in the turned orientation."""

    pixels: npt.NDArray[np.uint8]  # h x w
    scale_row: float  # model px per px of the turned image
    scale_col: float
    flags: frozenset[str]  # all flags of the slice


def check_size(rows: int, cols: int) -> None:
    """Refuse sides that cannot be scored, before anything is allocated."""
    if max(rows, cols) > _MAX_SIDE_PX or rows * cols > _MAX_PIXELS:
        raise SliceError("too_large")
    if min(rows, cols) < _MIN_SIDE_PX:
        raise SliceError("too_small")


def check_hu(hu: npt.NDArray[np.float32]) -> None:
    """Refuse values that no CT slice of a body has: most often a wrong or missing rescale."""
    if hu.min() < LOWEST_HU or hu.max() > HIGHEST_HU:
        raise SliceError("implausible_hu")
    sample = hu[::2, ::2]
    below = np.count_nonzero(sample < _BELOW_HU)
    if below < _MIN_BELOW_FRACTION * sample.size or np.median(sample) > _MAX_MEDIAN_HU:
        raise SliceError("implausible_hu")


def to_input(slice_: Slice, contract: InputContract) -> ModelInput:
    """Window, check and resize one slice."""
    if slice_.unit == "hu":
        grey = window(slice_.pixels, contract)
    else:
        grey = slice_.pixels.astype(np.uint8)
    flags = slice_.flags | _check_content(slice_, grey)
    pixels = _resize(grey, contract)
    return ModelInput(
        pixels=pixels,
        scale_row=pixels.shape[0] / grey.shape[0],
        scale_col=pixels.shape[1] / grey.shape[1],
        flags=flags,
    )


def window(hu: npt.NDArray[np.float32], contract: InputContract) -> npt.NDArray[np.uint8]:
    """Hounsfield units -> grey of the card's window."""
    low_hu = contract.window_center_hu - contract.window_width_hu / 2
    scaled = (hu - low_hu) / contract.window_width_hu
    # Truncated, not rounded: the formula of COVIDx-CT, whose pictures the model was trained on.
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def boxes_to_stored(
    boxes: npt.NDArray[np.floating[Any]],
    *,
    scale_row: float,
    scale_col: float,
    turn: Turn,
    rows: int,
    cols: int,
) -> npt.NDArray[np.float32]:
    """Map x0 y0 x1 y1 from px of the model's input to px of the stored rows x cols image."""
    scales = np.array([scale_col, scale_row, scale_col, scale_row], np.float32)
    turned_N4 = np.asarray(boxes, np.float32).reshape(-1, 4) / scales
    return turn.boxes_to_stored(turned_N4, rows=rows, cols=cols)


def _resize(grey: npt.NDArray[np.uint8], contract: InputContract) -> npt.NDArray[np.uint8]:
    short, long = min(grey.shape), max(grey.shape)
    if short == contract.size_px and long <= contract.max_size_px:
        return grey
    scale = min(contract.size_px / short, contract.max_size_px / long)
    height, width = (round(side * scale) for side in grey.shape)
    # Mode "F" neither clips nor rounds between the two passes; Pillow antialiases when it shrinks.
    image = Image.fromarray(grey.astype(np.float32))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(resized.round(), 0, 255).astype(np.uint8)


def _check_content(slice_: Slice, grey: npt.NDArray[np.uint8]) -> set[str]:
    """Return the flags that the values alone can tell; refuse what is no picture at all."""
    if np.count_nonzero(np.bincount(grey.ravel(), minlength=256)) < _MIN_GREY_LEVELS:
        raise SliceError("constant_image")
    flags = set()
    short, long = min(grey.shape), max(grey.shape)
    if short < _SMALL_SIDE_PX:
        flags.add("small")
    step = max(1, short // _CHECK_SIDE_PX)
    grey = grey[::step, ::step]
    if max(_longest_run(_is_blank(grey)), _longest_run(_is_blank(grey.T))) > _MAX_BLANK_RUN:
        flags.add("partly_blank")
    if slice_.unit == "hu":
        air = slice_.pixels[::step, ::step] < _AIR_HU
    else:
        air = grey < _AIR_GREY
        flags |= _check_window(grey, air)
    if _lung_fraction(air, _inner(air)) < _MIN_LUNG_FRACTION:
        flags.add("no_lung")
    if long > _MAX_ASPECT * short or not _MIN_PART < air.mean() < 1 - _MIN_PART:
        flags.add("not_ct_like")
    return flags


def _check_window(grey: npt.NDArray[np.uint8], air: npt.NDArray[np.bool_]) -> set[str]:
    """Return what is wrong with the grey scale of a picture that came windowed."""
    if _has_lung(grey, air):
        return set() if np.median(grey[~air]) >= _MIN_TISSUE_GREY else {"window"}
    negative = 255 - grey
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if np.median(border) > _AIR_GREY and _has_lung(negative, negative < _AIR_GREY):
        return {"inverted"}
    black_lung = _lung_fraction(air, _inner(air)) >= _MIN_LUNG_FRACTION
    return {"window"} if black_lung or np.mean(grey == 0) > _MAX_BLACK_FRACTION else set()


def _has_lung(grey: npt.NDArray[np.uint8], air: npt.NDArray[np.bool_]) -> bool:
    inner = _inner(air)
    if _lung_fraction(air, inner) < _MIN_LUNG_FRACTION:
        return False
    return bool(np.median(grey[inner]) >= _MIN_LUNG_GREY)


def _inner(air: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the air that is not connected with the border: lungs, airways, bowel."""
    labels, count = ndimage.label(air)
    enclosed = np.ones(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        enclosed[edge] = False
    enclosed[0] = False
    return np.asarray(enclosed[labels])


def _lung_fraction(air: npt.NDArray[np.bool_], inner: npt.NDArray[np.bool_]) -> float:
    body = int(np.count_nonzero(~air | inner))
    # Opening drops what lungs are not: sinuses, airways, noise.
    lung = int(np.count_nonzero(ndimage.binary_opening(inner, np.ones((3, 3), bool))))
    return lung / max(1, body)


def _is_blank(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which rows hold one value only."""
    return np.asarray((grey == grey[:, :1]).all(axis=1))


def _longest_run(flags: npt.NDArray[np.bool_]) -> float:
    """Return the longest run of True as a fraction of the length."""
    ends = np.flatnonzero(~np.concatenate([[False], flags, [False]]))
    return (int(np.diff(ends).max()) - 1) / len(flags)
