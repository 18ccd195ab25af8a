"""From prepared slices to prediction rows.

Boxes are converted back to px of the stored image. `Scorer` is all that the graph asks of a model,
so that a stand-in can take its place without torch. `ModelSource` describes a model to the driver
and loads it in another process.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cctmn import schema
from cctmn.errors import SLICE_CODES
from cctmn.numerics import FLOAT32, processor_name
from cctmn.read.geometry import Affine

if TYPE_CHECKING:
    from cctmn.model.inference import Prediction
    from cctmn.studies import StudyRule

ImageArray = NDArray[np.uint8]  # H x W, as the card's input contract asks


class GpuError(Exception):
    """An error of CUDA, after which a process cannot use its GPU any more."""


class Scorer(Protocol):
    """Detector and classifier in one process."""

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[Prediction]:
        """One prediction per image, in order, each independent of the other images.

        With `masks`, lesions have mask logits. Raises GpuError if another process must go on.
        """
        ...


def device_name(scorer: Scorer) -> str:
    """Return the name of the device that a scorer computes on, its own or the processor's."""
    return str(getattr(scorer, "device_name", "")) or processor_name()


@dataclass(frozen=True)
class ModelSource:
    """A model as the job sees it: its classes, and how to load it in another process."""

    model_id: str
    image_classes: tuple[str, ...]  # empty for a detector
    lesion_classes: tuple[str, ...]
    activation: str  # "sigmoid" or "softmax": logits / temperature -> p_*
    input: dict[str, Any]  # the card's input contract
    identity: dict[str, Any]  # the model's part of the run's identity
    # Runs in the scorer process; the argument says whether that was given a GPU.
    load: Callable[[bool], Scorer]
    mask_head: bool = False  # lesions have masks, not boxes alone
    temperature: float = 1.0  # the logits are divided by it before the activation
    described: dict[str, Any] = field(default_factory=dict)  # of the card, for the manifest
    precision: str = FLOAT32  # one of numerics.PRECISIONS, in which the loaded scorer computes

    @property
    def study_rule(self) -> StudyRule:
        """The way from logits to the class of a study."""
        # The driver alone needs these, and scipy with them.
        from cctmn.metrics.patients import PatientRule
        from cctmn.studies import StudyRule

        calibration = self.described.get("calibration") or {}
        return StudyRule(
            self.activation, self.temperature, PatientRule.from_calibration(calibration)
        )


def score(
    table: pa.Table,
    *,
    scorer: Scorer,
    source: ModelSource,
    batch_size: int,
    ranked_boxes: bool,
    masks: bool = False,
    turn: AbstractContextManager[Any] | None = None,
) -> pa.Table:
    """Return one prediction row per prepared row, in the same order.

    The scorer predicts each batch while `turn` is held, a lock if several threads share the scorer.
    """
    turn = turn or nullcontext()
    rows = table.drop_columns("pixels").to_pylist()
    for row, pixels in zip(rows, _views(table["pixels"]), strict=True):
        row["pixels"] = pixels
    todo = [row for row in rows if not row["error_code"]]
    for row in rows:
        if row["error_code"]:
            row |= {"error_message": SLICE_CODES[row["error_code"]], "abstained": False}
            row |= {"num_lesions": 0, "lesions": [], "lesion_masks": [], "t_score_ms": 0.0}
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        with turn:
            began = time.perf_counter()
            predictions = scorer.predict([_pixels(row) for row in batch], masks=masks)
            share_ms = 1e3 * (time.perf_counter() - began) / len(batch)
        for row, prediction in zip(batch, predictions, strict=True):
            row |= _scored(row, prediction, source, ranked_boxes=ranked_boxes)
            if masks:
                row["lesion_masks"] = _masks(row, prediction)
            row["t_score_ms"] = share_ms
    for row in rows:
        row["model_id"] = source.model_id
    columns = schema.predictions(source.image_classes, ranked_boxes=ranked_boxes, masks=masks)
    return pa.Table.from_pylist(rows, schema=columns)


def _views(column: pa.ChunkedArray) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of each row where they lie; Arrow would copy them into Python's objects."""
    for chunk in filter(len, column.chunks):
        _, places, data = chunk.buffers()
        first, count = chunk.offset, len(chunk)
        # The format of Arrow's binary columns: 32-bit offsets into one buffer, one more than rows.
        ends = np.frombuffer(places, np.int32)[first : first + count + 1]
        everything = np.frombuffer(data or b"", np.uint8)
        for begin, end in itertools.pairwise(ends):
            yield everything[begin:end]


def _pixels(row: dict[str, Any]) -> ImageArray:
    pixels: NDArray[np.uint8] = row["pixels"]
    return pixels.reshape(row["input_rows"], row["input_cols"])


def _scored(
    row: dict[str, Any], prediction: Prediction, source: ModelSource, *, ranked_boxes: bool
) -> dict[str, Any]:
    to_stored = Affine.from_list(row["to_stored"])
    areas = prediction.mask_px_M
    if areas is not None:
        areas = np.rint(areas * to_stored.area_factor)
    boxes_M4 = to_stored.boxes(prediction.boxes_M4)
    lesions = [
        {
            **_box(boxes_M4[i], prediction.scores_M[i]),
            "label": source.lesion_classes[prediction.labels_M[i] - 1],
            "mask_px": None if areas is None else int(areas[i]),
        }
        for i in range(len(boxes_M4))
    ]
    columns: dict[str, Any] = {
        "num_lesions": len(lesions),
        "max_lesion_score": float(prediction.scores_M.max()) if lesions else None,
        "lesions": lesions,
        "abstained": bool(schema.ABSTAIN_FLAGS & set(row["flags"])),
        "error_message": "",
    }
    if prediction.logits_C is not None:
        from cctmn.model.probabilities import probabilities  # and scipy, for the scorers alone

        for name, logit, p in zip(
            source.image_classes,
            prediction.logits_C,
            probabilities(
                prediction.logits_C, activation=source.activation, temperature=source.temperature
            ),
            strict=True,
        ):
            columns |= {f"logit_{name}": float(logit), f"p_{name}": float(p)}
        columns["pred_class"] = source.image_classes[int(prediction.logits_C.argmax())]
    if (
        ranked_boxes
        and prediction.ranked_boxes_N4 is not None
        and prediction.ranked_features_N5 is not None
    ):
        ranked_N4 = to_stored.boxes(prediction.ranked_boxes_N4)
        scores_N = prediction.ranked_features_N5[:, 0]
        columns["ranked_boxes"] = [
            _box(box_4, s) for box_4, s in zip(ranked_N4, scores_N, strict=True)
        ]
    return columns


def _masks(row: dict[str, Any], prediction: Prediction) -> list[bytes]:
    from cctmn.score.masks import on_stored  # torch, which a stand-in's process need not load

    return on_stored(
        prediction,
        to_stored=Affine.from_list(row["to_stored"]),
        input_size=(row["input_rows"], row["input_cols"]),
        stored_size=(row["rows"], row["cols"]),
    )


def _box(box_4: NDArray[Any], score: Any) -> dict[str, float]:
    return dict(zip(("x0", "y0", "x1", "y1", "score"), map(float, (*box_4, score)), strict=True))
