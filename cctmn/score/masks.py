"""The masks of a slice's lesions on the stored image, as COCO run lengths.

The counts are COCO's compressed form; with the size of the image, COCO's tools read them. Masks are
unpacked one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from cctmn.model.inference import paste
from cctmn.read.geometry import Affine
from cctmn.rle import encode

if TYPE_CHECKING:
    from cctmn.model.inference import Prediction


def on_stored(
    prediction: Prediction,
    *,
    to_stored: Affine,
    input_size: tuple[int, int],
    stored_size: tuple[int, int],
) -> list[bytes]:
    """Return one mask per lesion, in their order; sizes are height and width in px."""
    if prediction.mask_logits_M1SS is None:
        return []
    place = _places(to_stored, input_size, stored_size)
    pasted = paste(
        torch.from_numpy(prediction.mask_logits_M1SS),
        torch.from_numpy(prediction.boxes_M4),
        size=input_size,
    )
    return [encode(mask.numpy().ravel()[place][None])[0]["counts"] for mask in pasted]


def _places(
    to_stored: Affine, input_size: tuple[int, int], stored_size: tuple[int, int]
) -> NDArray[np.intp]:
    """For each stored pixel, the flat index of the input pixel that its centre lies in."""
    y_HW, x_HW = np.indices(stored_size) + 0.5
    x_in_HW, y_in_HW = to_stored.inverse().points(x_HW, y_HW)
    rows, cols = input_size
    row_HW = np.floor(y_in_HW).astype(np.intp).clip(0, rows - 1)
    col_HW = np.floor(x_in_HW).astype(np.intp).clip(0, cols - 1)
    return row_HW * cols + col_HW
