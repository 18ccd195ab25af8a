"""A model folder, local or on S3, as the scoring job uses it.

The driver checks it and gets a `ModelSource`; each scorer process loads the networks.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cctmn.errors import ModelError
from cctmn.model.card import (
    Card,
    lesion_rule,
    parameter_counts,
    portable,
    read_card,
    read_weights,
)
from cctmn.model.memory import keep_freed_memory
from cctmn.numerics import BFLOAT16, FLOAT32, TF32, precision_of, processor_name
from cctmn.score.scorer import GpuError, ImageArray, ModelSource

if TYPE_CHECKING:
    from cctmn.model.inference import Prediction


class NetScorer:
    """The networks of one model folder on the GPU that this process was given, or on one CPU core.

    Without a GPU it computes on the CPU, also where torch could use one. `precision` is one of
    numerics.PRECISIONS. Raises ModelError if it was given a GPU that torch cannot use.
    """

    def __init__(
        self, uri: str, gpu: bool, *, lesion_nms_iou: float, precision: str = FLOAT32
    ) -> None:
        from cctmn.model.quick_start import import_torchvision

        import_torchvision()
        import torch

        from cctmn.model import checkpoint
        from cctmn.model.inference import Predictor

        if gpu and not torch.cuda.is_available():
            raise ModelError(
                "a scorer was given a GPU that PyTorch cannot use; check the driver with "
                "nvidia-smi, or score on CPUs with --device cpu"
            )
        keep_freed_memory()
        assert gpu or precision != TF32, "the job must refuse this"
        set_float32(TF32 if precision == TF32 else "ieee")
        # One thread, for there is one scorer per core.
        net = checkpoint.load(uri).net
        device = "cuda" if gpu else "cpu"
        self.device_name = torch.cuda.get_device_name() if gpu else processor_name()
        self._largest_batch: int | None = None  # that the memory of the GPU is known to hold
        self._predictor = Predictor(
            net,
            device=device,
            precision="bfloat16" if precision == BFLOAT16 else "float32",
            threads=1,
            lesion_nms_iou=lesion_nms_iou,
        )

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[Prediction]:
        """One prediction per image, in order; with `masks`, lesions have mask logits.

        If the memory of the GPU is too small for a batch, this and all later batches are halved as
        often as it takes. Raises ModelError if it is too small for one slice, GpuError after an
        error of CUDA.
        """
        predictions: list[Prediction] = []
        while len(predictions) < len(images):
            first = len(predictions)
            part = images[first : first + (self._largest_batch or len(images))]
            if not (done := self._predict_if_it_fits(part, masks=masks)):
                self._halve(len(part))
            predictions += done
        return predictions

    def _predict_if_it_fits(self, images: Sequence[ImageArray], *, masks: bool) -> list[Prediction]:
        """The predictions, or none if the memory of the GPU is too small for them."""
        import torch

        try:
            return self._predictor.predict(images, masks=masks)
        except torch.cuda.OutOfMemoryError:
            # The traceback holds tensors, so the memory is freed after this has returned.
            return []
        except RuntimeError as error:
            if "CUDA error" in str(error):
                cause = str(error).partition("\n")[0]
                logging.getLogger(__name__).error(
                    "%s; this scorer ends and another takes its place", cause
                )
                raise GpuError(cause) from error
            raise

    def _halve(self, batch: int) -> None:
        import torch

        if batch == 1:
            raise ModelError(
                "the memory of the GPU is too small for one slice; free it, give each scorer a "
                "larger part with gpus, or score on CPUs with --device cpu"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._largest_batch is None:
            logging.getLogger(__name__).warning(
                "the memory of a GPU is too small for %d slices at once; smaller batches are used; "
                "set a smaller batch_size",
                batch,
            )
        self._largest_batch = batch // 2


def set_float32(precision: str) -> None:
    """Let a GPU compute in float32 as IEEE 754 has it ("ieee"), or in TF32 ("tf32").

    By default PyTorch rounds the inputs of a GPU's convolutions to TF32, with 10 bits of fraction.
    That reorders boxes of nearly equal scores, and module S reads boxes by their rank.
    """
    import torch

    if hasattr(torch.backends.cudnn, "conv"):  # PyTorch 2.9 and later
        torch.backends.cudnn.conv.fp32_precision = precision
        torch.backends.cuda.matmul.fp32_precision = precision
    else:
        torch.backends.cudnn.allow_tf32 = precision == TF32
        torch.backends.cuda.matmul.allow_tf32 = precision == TF32


def open_source(
    folder: str, *, lesion_nms_iou: float = 0.0, precision: str = "auto"
) -> ModelSource:
    """Open the model at a path or S3 URI. Raises ModelError unless its weights fit its card.

    `lesion_nms_iou` is the NMS threshold of the reported lesions; with 0 it is that of the card.
    `precision` is a value of that setting.
    """
    card = read_card(folder)
    weights = read_weights(folder, card=card)
    source = source_of(card, folder, lesion_nms_iou=lesion_nms_iou, precision=precision)
    return replace(source, described=source.described | parameter_counts(weights))


def source_of(
    card: Card, folder: str, *, lesion_nms_iou: float = 0.0, precision: str = "auto"
) -> ModelSource:
    """Return the model of a card, whose weights are not looked at; see `open_source`."""
    precision = precision_of(precision)
    if lesion_nms_iou:
        card = replace(card, lesions=lesion_rule(nms_iou=lesion_nms_iou))
    arch = card.arch
    identity: dict[str, Any] = {
        "weights_sha256": card.weights_sha256,
        "arch": asdict(arch),
        "input": dict(card.input),
        "lesions": dict(card.lesions),
        "activation": card.activation,
    }
    if card.temperature != 1:  # so that folders from before a calibration keep their fingerprint
        identity["temperature"] = card.temperature
    if len(arch.layers) > 1:
        # Earlier versions dropped proposals without area, which moved logits by up to 3.9. With one
        # level there are hardly any, so those folders can be resumed.
        identity["proposals"] = "all"
    return ModelSource(
        model_id=card.model_id,
        image_classes=tuple(arch.image_classes),
        lesion_classes=tuple(arch.lesion_classes),
        activation=card.activation,
        input=dict(card.input),
        identity=identity,
        load=functools.partial(
            NetScorer,
            portable(folder),
            lesion_nms_iou=card.lesion_nms_iou,
            precision=precision,
        ),
        mask_head=arch.mask_head,
        temperature=card.temperature,
        described=dict(card.described),
        precision=precision,
    )
