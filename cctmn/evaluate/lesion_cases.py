"""The images with lesion masks worth looking at, and the true lesions to draw beside the model's.

Reads: images with true and detected lesions.
Writes: the lists `lowest_ap` and `false_boxes` of the section `cases`, and true lesions of slices.

Shape suffixes: I images, K edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import rle
from cctmn.evaluate import cases
from cctmn.evaluate.join import Scored
from cctmn.metrics import bootstrap
from cctmn.metrics.detection import ImageOutcome, Instances, Kind, image_outcome
from cctmn.metrics.metric import DRAWN_SCORE


def choose(
    predicted: Sequence[Instances],
    truth: Sequence[Instances],
    *,
    ids: Sequence[str],
    patients: Sequence[str],
    kind: Kind,
    scored: Scored,
) -> dict[str, list[dict[str, Any]]]:
    """Choose the images of lowest AP and those of most false boxes, at most one per patient.

    All arguments hold scored images alone. Of equal AP the image with more missed lesions is first.
    """
    outcomes = [
        image_outcome(*pair, kind=kind, least_score=DRAWN_SCORE)
        for pair in zip(predicted, truth, strict=True)
    ]
    ap50_I = np.array([one.ap50 for one in outcomes])
    missed_I = np.array([one.missed for one in outcomes])
    false_I = np.array([one.false for one in outcomes])
    group_I, _ = bootstrap.group_patients(list(patients))
    kinds = {
        "lowest_ap": (ap50_I < 1, np.lexsort((-missed_I, ap50_I))),
        "false_boxes": (false_I > 0, np.lexsort((ap50_I, -false_I))),
    }
    chosen = {
        name: cases.first_of_patients(order[kept_I[order]], group_I)[: cases.SHOWN]
        for name, (kept_I, order) in kinds.items()
    }
    wanted = sorted({image for best in chosen.values() for image in best})
    table_rows = pc.index_in(
        pa.array([ids[image] for image in wanted], pa.string()),
        value_set=scored.table["slice_id"].combine_chunks(),
    ).to_pylist()
    details = dict(zip(wanted, cases.read_details(scored, table_rows), strict=True))
    return {
        name: [details[image] | _as_json(outcomes[image]) for image in best]
        for name, best in chosen.items()
    }


def true_lesions(truth: Instances, *, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lesions of a mask as metrics.json holds them: box, label and outline."""
    assert truth.boxes_M4 is not None
    return [
        {
            **dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True)),
            "label": classes[label - 1],
            "outline": outline(rle.decode(mask["counts"], size=tuple(mask["size"]))),
        }
        for box, label, mask in zip(truth.boxes_M4, truth.labels_M, truth.masks, strict=True)
    ]


def outline(mask_HW: NDArray[np.bool_]) -> str:
    """Return the edge of a mask as SVG path data in px: a line for each straight piece."""
    padded = np.pad(mask_HW, 1)
    across = _pieces(padded[1:, 1:-1] != padded[:-1, 1:-1])
    down = _pieces((padded[1:-1, 1:] != padded[1:-1, :-1]).T)
    lines = [f"M{x0} {y}H{x1}" for y, x0, x1 in across]
    return "".join([*lines, *(f"M{x} {y0}V{y1}" for x, y0, y1 in down)])


def _pieces(edge: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return the row, the first px and the end of each run of true px in a row."""
    steps = np.diff(np.pad(edge, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows_K, first_K = np.nonzero(steps == 1)
    _, end_K = np.nonzero(steps == -1)
    return list(zip(rows_K.tolist(), first_K.tolist(), end_K.tolist(), strict=True))


def _as_json(outcome: ImageOutcome) -> dict[str, Any]:
    return {
        "ap50": round(outcome.ap50, 4),
        "missed": outcome.missed,
        "false_boxes": outcome.false,
    }
