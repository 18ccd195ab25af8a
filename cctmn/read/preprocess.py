"""From a decoded slice to the picture that a model sees: window, checks, resize.

The window is the one of the model's input contract and never the header's: the header's first
window shows soft tissue in every real file that was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cctmn.contract import InputContract
from cctmn.read.geometry import Affine
from cctmn.read.quality import check_content
from cctmn.read.slice import Slice


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
    pixels = _resize(grey, contract)
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
    scaled = (hu - low_hu) / contract.window_width_hu
    # Truncated, not rounded: this is the formula of the training pictures (COVIDx-CT).
    return (255 * np.clip(scaled, 0, 1)).astype(np.uint8)


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
