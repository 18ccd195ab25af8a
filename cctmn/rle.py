"""Run lengths of masks in COCO's compressed form, which COCO's own tools read.

The scores of a slice, the training data and the metrics all keep masks in this form.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


def encode(masks_MHW: NDArray[np.uint8] | NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return one COCO object per mask, with `size` (height, width) and `counts` (bytes).

    Every value other than 0 belongs to the mask.
    """
    # The encoder needs column order. Converting mask by mask avoids a copy of the whole stack.
    return [
        coco_mask.encode(np.asfortranarray(mask_HW != 0).view(np.uint8)) for mask_HW in masks_MHW
    ]


def decode(counts: bytes, *, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of compressed run lengths; `size` is (height, width)."""
    with warnings.catch_warnings():
        # pycocotools' array type lacks a keyword that NumPy 2 asks for; the result is right.
        warnings.simplefilter("ignore", DeprecationWarning)
        mask = coco_mask.decode({"size": list(size), "counts": counts})
    return np.asarray(mask, np.bool_)


def union_px(counts: Sequence[bytes], *, size: tuple[int, int]) -> int:
    """Return the area in px that several masks of one image cover together.

    `counts` are compressed run lengths, and `size` is (height, width).
    """
    masks = [{"size": list(size), "counts": one} for one in counts]
    return int(coco_mask.area(coco_mask.merge(masks))) if masks else 0
