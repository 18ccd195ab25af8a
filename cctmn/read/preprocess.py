"""From a decoded slice to the picture that a model sees: window, checks, resize.

The window is the one of the model's input contract and never the header's: the header's first
window shows soft tissue in every real file that was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from cctmn.contract import InputContract
from cctmn.read.geometry import Affine
from cctmn.read.quality import check_content
from cctmn.read.slice import Slice

_SQUARE_WITHIN: Final = 0.01
_MAX_STRETCH: Final = 10.0  # a larger ratio is a wrong header


@dataclass(frozen=True)
class ModelInput:
    """The picture that the model sees, in the turned orientation."""

    # h x w
    pixels: npt.NDArray[np.uint8]
    # from px of this picture to px of the stored image
    to_stored: Affine
    # all flags of the slice
    flags: frozenset[str]


def to_input(slice_: Slice, contract: InputContract) -> ModelInput:
    """Window, check and resize a slice. Raises SliceError if it cannot be scored."""
    grey = window(slice_.pixels, contract) if slice_.unit == "hu" else slice_.pixels
    flags = slice_.flags | check_content(slice_, grey)
    stretch = stretch_of(slice_)
    if stretch != 1:
        flags |= {"not_square"}
    pixels = _resize(grey, contract, stretch=stretch)
    return ModelInput(
        pixels=pixels,
        to_stored=Affine.from_turn_and_scale(
            slice_.turn,
            scale_row=pixels.shape[0] / grey.shape[0],
            scale_col=pixels.shape[1] / grey.shape[1],
            rows=slice_.rows,
            cols=slice_.cols,
        ),
        flags=flags,
    )


def window(hu: npt.NDArray[np.float32], contract: InputContract) -> npt.NDArray[np.uint8]:
    """Return the grey values 0 to 255 of Hounsfield units in the contract's window."""
    low_hu = contract.window_center_hu - contract.window_width_hu / 2
    # In place: each new array of a slice's size costs as much time as the arithmetic.
    scaled = hu - low_hu
    scaled /= contract.window_width_hu
    np.clip(scaled, 0, 1, out=scaled)
    scaled *= 255
    # Truncated, not rounded: this is the formula of the training pictures (COVIDx-CT).
    return scaled.astype(np.uint8)


def stretch_of(slice_: Slice) -> float:
    """Return the height of a pixel over its width in the turned image; 1 if they are nearly equal.

    A rounded header is off by up to 1 %.
    """
    if not slice_.spacing_row_mm or not slice_.spacing_col_mm:
        return 1.0
    ratio = slice_.spacing_row_mm / slice_.spacing_col_mm
    if not 1 / _MAX_STRETCH < ratio < _MAX_STRETCH or abs(ratio - 1) < _SQUARE_WITHIN:
        return 1.0
    return 1 / ratio if slice_.turn.transpose else ratio


def _resize(
    grey: npt.NDArray[np.uint8], contract: InputContract, *, stretch: float
) -> npt.NDArray[np.uint8]:
    sides = (grey.shape[0] * stretch, grey.shape[1])  # in widths of a pixel
    short, long = min(sides), max(sides)
    if stretch == 1 and short == contract.size_px and long <= contract.max_size_px:
        return grey
    scale = min(contract.size_px / short, contract.max_size_px / long)
    height, width = (max(1, round(side * scale)) for side in sides)
    # Mode "F" neither clips nor rounds between the two passes; Pillow antialiases when it shrinks.
    image = Image.fromarray(grey.astype(np.float32))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(resized.round(), 0, 255).astype(np.uint8)
