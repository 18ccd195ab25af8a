"""Runs a network on slices: preparation, batching, layout, precision and the final predictions.

`Predictor` is the only way to run a network outside training. A faster implementation takes its
place, and tests/model/test_predictor_parity.py compares the two.

Shape suffixes: B slices, 3 channels, H W px; C image classes, M lesions, N ranked boxes,
4 box (x0 y0 x1 y1 px of the input), 5 feature (score, 4 encoded deltas), S cells of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from cctmn.model.batched import BatchedNet
from cctmn.model.box_layers import ChannelsLastBoxLayers
from cctmn.model.classifier import Classifier
from cctmn.model.constants import MASK_LOGIT
from cctmn.model.cpu_layers import with_cpu_layers
from cctmn.model.detector import Detector
from cctmn.model.folding import folded

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

    On the CPU, slices run one by one, for a batch was not faster there: the prediction of a slice
    is the same, bit by bit, whatever else is in the call. On CUDA, slices of one padded shape run
    as one batch (`batched`). No operation mixes slices there, but the number of slices may decide
    how a kernel rounds, by about 1e-5 of a logit. Where that swaps two boxes of nearly equal
    scores, logits move by more, because module S reads boxes by their rank. `jobs/gpu_check.py`
    measures both on a GPU. `true_batches` overrides the choice.

    `device` defaults to the device of the network's weights. `precision` is that of the backbone;
    all that follows is float32, also within an autocast of the caller. `threads` sets the number of
    CPU threads of this process. `lesion_nms_iou` overrides the NMS threshold of the network's
    reported lesions. Weights that change later have no effect.

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
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        has_cpu_layers = on_cpu and not own_layers and (precision == "float32" or onednn.usable())
        self._autocast = precision == "bfloat16" and not has_cpu_layers
        if has_cpu_layers:
            self._detector = with_cpu_layers(self._detector, dtype=dtype)
        if not on_cpu:
            # cuDNN is faster with channels last; values stay the same.
            self._detector = folded(self._detector).to(memory_format=torch.channels_last)
        # torchvision's kernel for a GPU pools channels first, as the network's own layers do.
        box_head = self._detector.roi_heads.box_head
        self._box_layers = ChannelsLastBoxLayers(box_head) if on_cpu else None
        self._batched: BatchedNet | None = None
        if not on_cpu if true_batches is None else true_batches:
            self._batched = BatchedNet(
                self._detector,
                classifier=self._classifier,
                lesion_nms_iou=self._nms_iou,
                features=self._features,
                box_layers=self._box_layers,
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
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            if self._batched is not None:
                return self._predict_batches(self._batched, images, areas=areas, masks=masks)
            return [self._predict_one(image, areas=areas, masks=masks) for image in images]

    def _predict_batches(
        self,
        batched: BatchedNet,
        images: Sequence[NDArray[np.uint8] | Tensor],
        *,
        areas: bool,
        masks: bool,
    ) -> list[Prediction]:
        slices = [_grey(image) for image in images]
        by_shape: dict[Size, list[int]] = {}
        for i, grey in enumerate(slices):
            by_shape.setdefault(_padded(grey), []).append(i)
        predictions: dict[int, Prediction] = {}
        for shape, members in by_shape.items():
            batch = batched.predict([slices[i] for i in members], shape=shape, masks=areas or masks)
            for i, arrays in zip(members, batch, strict=True):
                logits = arrays.get("mask_logits_M1SS")
                if areas and logits is not None:
                    arrays["mask_px_M"] = _areas(
                        torch.from_numpy(logits),
                        torch.from_numpy(arrays["boxes_M4"]),
                        size=_size(slices[i]),
                    )
                if not masks:
                    arrays.pop("mask_logits_M1SS", None)
                predictions[i] = _to_prediction(arrays)
        return [predictions[i] for i in range(len(images))]

    def _predict_one(
        self, image: NDArray[np.uint8] | Tensor, *, areas: bool, masks: bool
    ) -> Prediction:
        x_3HW, size = normalise_and_pad(image, device=self._device)
        x_B3HW = x_3HW[None].contiguous(memory_format=torch.channels_last)

        # 1. Box head: every proposal as every lesion class.
        features = self._features(x_B3HW)
        [output] = self._detector.box_outputs(
            x_B3HW, features, sizes=[size], box_layers=self._box_layers
        )
        candidates = output.candidates()
        part = _LesionTensors(*ranking.lesions(candidates, nms_iou=self._nms_iou))

        # 2. Module S.
        if self._classifier is not None:
            _add_classes(self._classifier, candidates, part)

        # 3. Mask head.
        if (areas or masks) and self._detector.roi_heads.has_mask():
            self._add_masks(features, part, size=size, areas=areas, masks=masks)

        # 4. One copy to the host.
        return _to_prediction(_to_host(part))

    def _features(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            features = self._detector.backbone(x_B3HW)
        return {name: feature.float() for name, feature in features.items()}

    def _add_masks(
        self,
        features: dict[str, Tensor],
        part: _LesionTensors,
        *,
        size: Size,
        areas: bool,
        masks: bool,
    ) -> None:
        heads = self._detector.roi_heads
        pooled = heads.mask_roi_pool(features, [part.boxes_M4], [size])
        logits = heads.mask_predictor(heads.mask_head(pooled))
        labels = part.labels_M
        own = logits[torch.arange(len(labels), device=labels.device), labels, None]
        if masks:
            part.mask_logits_M1SS = own
        if areas:
            part.mask_px_M = torch.from_numpy(_areas(own.cpu(), part.boxes_M4.cpu(), size=size))


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


def _add_classes(
    classifier: Classifier, candidates: ranking.Candidates, part: _LesionTensors
) -> None:
    keep = ranking.choose(candidates, count=classifier.arch.ranked)
    part.ranked_features_N5 = ranking.ranked_features(
        candidates.scores_R[keep],
        deltas_N4=candidates.deltas_R4[keep],
        count=classifier.arch.ranked,
    )
    part.ranked_boxes_N4 = ranking.pad_rows(candidates.boxes_R4[keep], count=classifier.arch.ranked)
    part.logits_C = classifier.module_s(part.ranked_features_N5.flatten())
    ranking.check_finite(part.logits_C)


def normalise_and_pad(
    image: NDArray[np.uint8] | Tensor, *, device: torch.device
) -> tuple[Tensor, Size]:
    """Normalise one grey slice (uint8, H x W) and pad it with zeros to multiples of 32.

    Returns the slice as 3 x H x W, float32, and its size before padding.
    """
    grey = _grey(image)
    size = _size(grey)
    padded = _padded(grey)
    x_HW = grey.to(device).float() / 255
    mean, std = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (MEAN, STD))
    x_3HW = (x_HW - mean) / std
    return F.pad(x_3HW, (0, padded[1] - size[1], 0, padded[0] - size[0])), size


def _grey(image: NDArray[np.uint8] | Tensor) -> Tensor:
    # np.array copies: torch does not take read-only or flipped arrays, and both are common.
    grey = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    assert grey.dtype == torch.uint8, grey.dtype
    assert grey.ndim == 2, grey.shape
    assert grey.numel(), grey.shape
    return grey


def _size(grey_HW: Tensor) -> Size:
    height, width = grey_HW.shape
    return height, width


def _padded(grey_HW: Tensor) -> Size:
    height, width = _size(grey_HW)
    return height + -height % MULTIPLE_PX, width + -width % MULTIPLE_PX


def paste(logits_M1SS: Tensor, boxes_M4: Tensor, *, size: Size) -> Iterator[Tensor]:
    """Each lesion's mask (H x W, bool) on the slice.

    They come one at a time, for 128 masks pasted at once take 134 MB.
    """
    for logits_1SS, box_4 in zip(logits_M1SS, boxes_M4, strict=True):
        pasted = roi_heads.paste_masks_in_image(logits_1SS[None], box_4[None], size)
        yield pasted[0, 0] > MASK_LOGIT


def _areas(logits_M1SS: Tensor, boxes_M4: Tensor, *, size: Size) -> NDArray[np.int64]:
    """The number of pixels of each lesion's mask on the slice, as `paste` has them.

    Only the pixels of the box are computed. All tensors are on the CPU.
    """
    padded, scale = roi_heads.expand_masks(logits_M1SS, padding=1)
    boxes = roi_heads.expand_boxes(boxes_M4, scale).long().tolist()
    height, width = size
    areas = np.zeros(len(boxes), np.int64)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        # The last row and column belong to the box.
        mask = F.interpolate(
            padded[i, None], (y1 - y0 + 1, x1 - x0 + 1), mode="bilinear", align_corners=False
        )[0, 0]
        on_slice = mask[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
        areas[i] = int((on_slice > MASK_LOGIT).sum())
    return areas


def _to_host(part: _LesionTensors) -> dict[str, NDArray[Any] | None]:
    """Copy the tensors of a slice from the device in one transfer, as float32 arrays.

    float32 holds labels and areas exactly: an area is below 2^24 px.
    """
    tensors = [tensor for tensor in vars(part).values() if tensor is not None]
    flat = torch.cat([tensor.to(part.boxes_M4).reshape(-1) for tensor in tensors]).cpu().numpy()
    pieces = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
    arrays = iter([p.reshape(t.shape) for p, t in zip(pieces, tensors, strict=True)])
    return {name: None if tensor is None else next(arrays) for name, tensor in vars(part).items()}


def _to_prediction(arrays: dict[str, Any]) -> Prediction:
    fields: dict[str, Any] = dict.fromkeys(Prediction.__dataclass_fields__)
    fields |= arrays
    areas = fields["mask_px_M"]
    fields["labels_M"] = fields["labels_M"].astype(np.int64)
    fields["mask_px_M"] = None if areas is None else areas.astype(np.int64)
    return Prediction(**fields)
