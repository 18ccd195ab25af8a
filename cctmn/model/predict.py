"""Lists of slices in, one `Prediction` a slice out: what detector and classifier share.

Each slice is normalised and padded on its own, and its answer does not depend on its neighbours.
On CUDA slices of one padded shape run as a true batch, on CPU one by one: there a batch gives the
same bits and no speed (ResNet-18 t1, one thread: 515 ms a slice alone, 510 in 3s, 540 in 8s).

Shape suffixes: B slices, 3 channels, H W px; C image classes, M lesions, N ranked boxes,
4 box (x0 y0 x1 y1 px of the input), 5 feature (score, 4 encoded deltas).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cctmn.contract import MEAN, STD

MULTIPLE_PX: Final = 32  # stride of the deepest layer, to which torchvision pads as well

Size = tuple[int, int]  # height, width in px


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one slice; boxes are px of the slice as handed in.

    A detector has no logits and no ranked boxes, a model without mask head no mask areas.
    """

    logits_C: NDArray[np.float32] | None
    boxes_M4: NDArray[np.float32]
    scores_M: NDArray[np.float32]  # 0..1, falling
    labels_M: NDArray[np.int64]  # from 1, into the lesion classes
    mask_px_M: NDArray[np.int64] | None  # px of the pasted mask above its threshold
    mask_logits_M1SS: NDArray[np.float32] | None  # 28 x 28 in the lesion's box
    ranked_N5: NDArray[np.float32] | None  # the features that module S saw
    ranked_boxes_N4: NDArray[np.float32] | None


def prepare(image: NDArray[np.uint8] | Tensor, *, device: torch.device) -> tuple[Tensor, Size]:
    """One grey slice, uint8 H x W -> normalised 3 x H x W, zero-padded to multiples of 32; size."""
    # A copy, for torch does not take read-only or flipped arrays, and both are common.
    grey = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    assert grey.dtype == torch.uint8, grey.dtype
    assert grey.ndim == 2, grey.shape
    assert grey.numel(), grey.shape
    height, width = grey.shape
    x_HW = grey.to(device).float() / 255
    mean, std = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (MEAN, STD))
    x_3HW = (x_HW - mean) / std
    return F.pad(x_3HW, (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX)), (height, width)


def predict_each(
    images: Sequence[NDArray[np.uint8] | Tensor],
    *,
    run: Callable[[Tensor, list[Size]], list[Prediction]],
    device: torch.device,
) -> list[Prediction]:
    """Call `run` on batches (B x 3 x H x W and the B sizes before padding), answer in input order.

    Raises ModelError if the model yields values that are not finite.
    """
    groups: dict[Any, list[int]] = {}
    with torch.inference_mode():
        slices = [prepare(image, device=device) for image in images]
        for i, (x_3HW, _) in enumerate(slices):
            key = i if device.type == "cpu" else x_3HW.shape
            groups.setdefault(key, []).append(i)
        answers: dict[int, Prediction] = {}
        for members in groups.values():
            # Channels last: a fifth faster on CPU, and its rounding is nearer to float64 than the
            # other layout's, which swapped two boxes 3e-8 apart and moved a logit by 0.7.
            x_B3HW = torch.stack([slices[i][0] for i in members]).contiguous(
                memory_format=torch.channels_last
            )
            answers |= zip(members, run(x_B3HW, [slices[i][1] for i in members]), strict=True)
    return [answers[i] for i in range(len(images))]
