"""Runs a network on slices: preparation, batching, layout, precision and the final predictions.

`Predictor` is the only way to run a network outside training. A faster implementation takes its
place, and tests/model/test_predictor_parity.py compares the two.

Shape suffixes: B slices, 3 channels, H W px; C image classes, M lesions, N ranked boxes,
4 box (x0 y0 x1 y1 px of the input), 5 feature (score, 4 encoded deltas), S cells of a mask.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import roi_heads

from cctmn.contract import MEAN, STD
from cctmn.model import onednn, ranking
from cctmn.model.backbone import Size
from cctmn.model.box_layers import ChannelsLastBoxLayers
from cctmn.model.classifier import Classifier
from cctmn.model.constants import MASK_LOGIT
from cctmn.model.cpu_layers import with_cpu_layers
from cctmn.model.detector import Detector

MULTIPLE_PX: Final = 32  # stride of the deepest layer; torchvision pads to it as well
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The output of a model for one slice. Boxes are in px of the slice that was passed in.

    A detector gives neither logits nor ranked boxes. Mask areas need a model with a mask head, and
    mask logits are present only if the caller asked for them.
    """

    logits_C: NDArray[np.float32] | None
    boxes_M4: NDArray[np.float32]
    scores_M: NDArray[np.float32]  # 0..1, falling
    labels_M: NDArray[np.int64]  # from 1, into the lesion classes
    mask_px_M: NDArray[np.int64] | None  # px of the pasted mask above its threshold
    mask_logits_M1SS: NDArray[np.float32] | None  # 28 x 28 in the lesion's box
    ranked_features_N5: NDArray[np.float32] | None  # the input of module S
    ranked_boxes_N4: NDArray[np.float32] | None  # the boxes that these features describe


class Predictor:
    """A network in eval mode on one device.

    The prediction of a slice does not depend on the other slices of the call. On CUDA, slices of
    one padded shape run as a true batch. On the CPU they run one by one, for a
    batch was not faster there. `true_batches` overrides this choice.

    `device` defaults to the device of the network's weights. `precision` is that of the backbone
    and, on the CPU, of the wide products of the heads; all else is float32. `threads` sets the
    number of CPU threads of this process. `lesion_nms_iou` overrides the NMS threshold of the
    network's reported lesions. Weights that change later have no effect.

    On the CPU, faster layers take the place of some of the network's own. That copies weights, so
    `own_layers` is for a network of which a few slices are asked.
    """

    def __init__(
        self,
        net: Detector | Classifier,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        threads: int | None = None,
        true_batches: bool | None = None,
        lesion_nms_iou: float | None = None,
        own_layers: bool = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._net = net if device is None else net.to(device)
        self._classifier = net if isinstance(net, Classifier) else None
        self._detector = net.detector if isinstance(net, Classifier) else net
        self._device = next(net.parameters()).device
        self._nms_iou = self._detector.lesion_nms_iou if lesion_nms_iou is None else lesion_nms_iou
        on_cpu = self._device.type == "cpu"
        self._true_batches = not on_cpu if true_batches is None else true_batches
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        has_cpu_layers = on_cpu and not own_layers and (precision == "float32" or onednn.usable())
        if has_cpu_layers:
            self._detector = with_cpu_layers(self._detector, dtype=dtype)
        self._autocast = precision == "bfloat16" and not has_cpu_layers
        self._box_layers = ChannelsLastBoxLayers(
            self._detector.roi_heads.box_head, dtype=dtype if has_cpu_layers else torch.float32
        )

    def predict(
        self,
        images: Sequence[NDArray[np.uint8] | Tensor],
        *,
        areas: bool = True,
        masks: bool = False,
    ) -> list[Prediction]:
        """Predict uint8 slices H x W at the model's input size (short side 512 px), in order.

        With `areas`, lesions have mask areas if the model has a mask head; with `masks`, they have
        mask logits. Raises ModelError if the model yields values that are not finite.
        """
        predictions: dict[int, Prediction] = {}
        with torch.inference_mode():
            slices = [normalise_and_pad(image, device=self._device) for image in images]
            batches: dict[Hashable, list[int]] = {}
            for i, (x_3HW, _) in enumerate(slices):
                batches.setdefault(x_3HW.shape if self._true_batches else i, []).append(i)
            for members in batches.values():
                x_B3HW = torch.stack([slices[i][0] for i in members]).contiguous(
                    memory_format=torch.channels_last
                )
                sizes = [slices[i][1] for i in members]
                batch = self._predict_batch(x_B3HW, sizes, areas=areas, masks=masks)
                predictions |= zip(members, batch, strict=True)
        return [predictions[i] for i in range(len(images))]

    def _predict_batch(
        self, x_B3HW: Tensor, sizes: list[Size], *, areas: bool, masks: bool
    ) -> list[Prediction]:
        # 1. Box head: every proposal as every lesion class.
        features = self._features(x_B3HW)
        outputs = self._detector.box_outputs(
            x_B3HW, features, sizes=sizes, box_layers=self._box_layers
        )
        candidates = [output.candidates() for output in outputs]
        parts = [_LesionTensors(*ranking.lesions(one, nms_iou=self._nms_iou)) for one in candidates]

        # 2. Module S.
        if self._classifier is not None:
            self._add_classes(self._classifier, candidates, parts)

        # 3. Mask head.
        if (areas or masks) and self._detector.roi_heads.has_mask():
            self._add_masks(features, parts, sizes=sizes, areas=areas, masks=masks)

        # 4. One copy to the host for the whole batch.
        return [_to_prediction(part) for part in _to_host(parts)]

    def _features(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            features = self._detector.backbone(x_B3HW)
        return {name: feature.float() for name, feature in features.items()}

    def _add_classes(
        self,
        classifier: Classifier,
        candidates: list[ranking.Candidates],
        parts: list[_LesionTensors],
    ) -> None:
        for one, part in zip(candidates, parts, strict=True):
            keep = ranking.choose(one, count=classifier.arch.ranked)
            part.ranked_features_N5 = ranking.ranked_features(
                one.scores_R[keep], deltas_N4=one.deltas_R4[keep], count=classifier.arch.ranked
            )
            part.ranked_boxes_N4 = ranking.pad_rows(
                one.boxes_R4[keep], count=classifier.arch.ranked
            )
            # Slice by slice: in a matrix product over the batch, the rounding of a row depends on
            # the other rows.
            part.logits_C = classifier.module_s(part.ranked_features_N5.flatten())
        ranking.check_finite(*(part.logits_C for part in parts if part.logits_C is not None))

    def _add_masks(
        self,
        features: dict[str, Tensor],
        parts: list[_LesionTensors],
        *,
        sizes: list[Size],
        areas: bool,
        masks: bool,
    ) -> None:
        heads = self._detector.roi_heads
        pooled = heads.mask_roi_pool(features, [part.boxes_M4 for part in parts], sizes)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        labels = torch.cat([part.labels_M for part in parts])
        own = logits[torch.arange(len(labels), device=labels.device), labels, None]
        counts = [len(part.labels_M) for part in parts]
        for part, logits_M1SS, size in zip(parts, own.split(counts), sizes, strict=True):
            if masks:
                part.mask_logits_M1SS = logits_M1SS
            if areas:
                pasted = [m.sum() for m in paste(logits_M1SS, part.boxes_M4, size=size)]
                part.mask_px_M = torch.stack(pasted) if pasted else labels.new_zeros(0)


@dataclass(eq=False)
class _LesionTensors:
    """The fields of a `Prediction` while they are tensors on the device."""

    boxes_M4: Tensor
    scores_M: Tensor
    labels_M: Tensor
    logits_C: Tensor | None = None
    mask_px_M: Tensor | None = None
    mask_logits_M1SS: Tensor | None = None
    ranked_features_N5: Tensor | None = None
    ranked_boxes_N4: Tensor | None = None


def normalise_and_pad(
    image: NDArray[np.uint8] | Tensor, *, device: torch.device
) -> tuple[Tensor, Size]:
    """Normalise one grey slice (uint8, H x W) and pad it with zeros to multiples of 32.

    Returns the slice as 3 x H x W, float32, and its size before padding.
    """
    # np.array copies: torch does not take read-only or flipped arrays, and both are common.
    grey = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    assert grey.dtype == torch.uint8, grey.dtype
    assert grey.ndim == 2, grey.shape
    assert grey.numel(), grey.shape
    height, width = grey.shape
    x_HW = grey.to(device).float() / 255
    mean, std = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (MEAN, STD))
    x_3HW = (x_HW - mean) / std
    return F.pad(x_3HW, (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX)), (height, width)


def paste(logits_M1SS: Tensor, boxes_M4: Tensor, *, size: Size) -> Iterator[Tensor]:
    """Each lesion's mask (H x W, bool) on the slice.

    They come one at a time, for 128 masks pasted at once take 134 MB.
    """
    for logits_1SS, box_4 in zip(logits_M1SS, boxes_M4, strict=True):
        pasted = roi_heads.paste_masks_in_image(logits_1SS[None], box_4[None], size)
        yield pasted[0, 0] > MASK_LOGIT


def _to_host(parts: list[_LesionTensors]) -> list[dict[str, NDArray[Any] | None]]:
    """Copy the tensors of all slices from the device in one transfer, as float32 arrays.

    float32 holds labels and areas exactly: an area is below 2^24 px.
    """
    tensors = [tensor for part in parts for tensor in vars(part).values() if tensor is not None]
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    arrays = iter([p.reshape(t.shape) for p, t in zip(pieces, tensors, strict=True)])
    return [
        {name: None if tensor is None else next(arrays) for name, tensor in vars(part).items()}
        for part in parts
    ]


def _to_prediction(arrays: dict[str, Any]) -> Prediction:
    areas = arrays["mask_px_M"]
    arrays["labels_M"] = arrays["labels_M"].astype(np.int64)
    arrays["mask_px_M"] = None if areas is None else areas.astype(np.int64)
    return Prediction(**arrays)
