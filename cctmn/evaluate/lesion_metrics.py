"""The part of an evaluation that is about lesions: found ones against masks drawn by hand.

In: predictions with boxes (and masks, if they were written), a folder as CNCB has it. Out: the
published AP and COCO's, boxes and masks, and FROC, with intervals over patients. Slices whose mask
shows no lesion are left out, as the method has it, and counted.

Shape suffixes: I images, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.classes import LESION_MODES
from cctmn.data.files import stem
from cctmn.data.issues import few
from cctmn.data.labels import base_name
from cctmn.data.lesions import LesionSample, check_lesions, open_lesions, read_truth
from cctmn.errors import ConfigError, DataError
from cctmn.evaluate.join import Scored
from cctmn.evaluate.options import EvaluationJob, Part, few_patients
from cctmn.metrics import bootstrap
from cctmn.metrics.bootstrap import Figure, Size
from cctmn.metrics.detection import Instances, Kind, encode
from cctmn.metrics.froc import Matches
from cctmn.read.intensity import InputContract
from cctmn.reporter import Reporter

THREADS: Final = 8  # reads in flight
WORDS: Final = {
    "image_ap50": "AP an image at IoU 0.50, averaged (as published)",
    "image_ap75": "AP an image at IoU 0.75, averaged (as published)",
    "image_map": "AP an image at IoU 0.50:0.95, averaged (as published)",
    "coco_ap50": "AP pooled over images at IoU 0.50 (COCO)",
    "coco_ap75": "AP pooled over images at IoU 0.75 (COCO)",
    "coco_map": "AP pooled over images at IoU 0.50:0.95 (COCO)",
}
NO_MASKS: Final = "The predictions hold boxes alone; score with --set masks=true to compare masks."


@dataclass(frozen=True, eq=False)
class _Images:
    """Images with true lesions and what was found on them, in one order."""

    truth: list[Instances]
    found: list[Instances]  # of an image without scores nothing
    patients: list[str]
    scored_I: NDArray[np.bool_]


def evaluate(
    job: EvaluationJob, *, scored: Scored, model: dict[str, Any], report: Reporter
) -> Part:
    """Everything that masks tell. Raises a CctmnError for what the user can mend."""
    assert job.masks is not None
    classes = tuple(model.get("lesion_classes") or ())
    if classes not in LESION_MODES.values():
        raise ConfigError(
            f"{job.out}: its manifest does not tell the lesion classes; give the model with -m"
        )
    opened = open_lesions(job.masks, names=job.mask_split)
    kept = check_lesions(opened, lesion_classes=classes, contract=InputContract(), threads=THREADS)
    for what, names in kept.problems.kinds():
        report(f"{job.masks}: {what}", names=names)
    rows = _rows(kept.samples, scored, place=job.masks)
    missing = [s.name for s in kept.samples if s.name not in rows]
    if missing:
        report(f"{job.masks}: {len(missing):,} slices without a prediction", names=few(missing))
    images = _images(kept.samples, rows, classes)
    found: dict[str, Figure] = {}
    curves: dict[str, Any] = {}
    kinds: list[Kind] = ["box", "mask"] if scored.has_masks else ["box"]
    for kind in kinds:
        figures, curve = _figures(images, classes, kind, job)
        found |= figures
        curves = {"froc": curve}  # of masks, where there are any
    errors = sum(row["error_code"] != "" for row in rows.values())
    detection = {
        "images": len(kept.samples),
        "patients": len(set(images.patients)),
        "joined": int(images.scored_I.sum()),
        "missing": len(missing),
        "errors": errors,
        "without_lesion": len(kept.problems.empty),
        "unreadable": len(kept.problems.unreadable),
        "lesions": sum(len(one.labels_M) for one in images.truth),
        "froc_of": kinds[-1],
        "note": None if scored.has_masks else NO_MASKS,
    }
    warnings = few_patients(len(set(images.patients)))
    if lost := len(missing) + errors:
        warnings.append(
            f"{lost:,} of {len(kept.samples):,} slices with lesions have no scores; the detection "
            "figures leave them out, their worst case counts nothing found on them."
        )
    return Part({"detection": detection, "curves": curves}, found, warnings)


def _rows(
    samples: Sequence[LesionSample], scored: Scored, *, place: str
) -> dict[str, dict[str, Any]]:
    """The prediction of each sample by its name, lesions included; raises DataError if none."""
    if scored.names is None:
        raise DataError(f"{scored.out}: OUT/private/inventory is not there, which knows the names")
    wanted = {sample.name for sample in samples}
    names: dict[str, str] = {}
    seen: set[str] = set()
    columns = [scored.names[c].to_pylist() for c in ("slice_id", "uri", "member")]
    for slice_id, uri, member in zip(*columns, strict=True):
        name = stem(base_name(member or store.display(uri)))
        if name not in wanted:
            continue
        if name in seen:
            raise DataError(f"{scored.out}: more than one slice is named {name}; score one of them")
        names[slice_id] = name
        seen.add(name)
    ids = pa.array(list(names), pa.string())
    lists = ["slice_id", "error_code", "rows", "cols", "lesions"]
    lists += ["lesion_masks"] if scored.has_masks else []
    found = {}
    for file in scored.files:
        part = tables.read(file, lists)
        for row in part.filter(pc.is_in(part["slice_id"], value_set=ids)).to_pylist():
            found[names[row["slice_id"]]] = row
    if not found:
        raise DataError(
            f"{place}: none of its slices (the first is {samples[0].name}) has a prediction in "
            f"{scored.out}; give the output of these slices"
        )
    return found


def _images(
    samples: Sequence[LesionSample], rows: dict[str, dict[str, Any]], classes: tuple[str, ...]
) -> _Images:
    truth, found, scored = [], [], []
    for sample in samples:
        masks_MHW, labels_M = read_truth(sample, lesion_classes=classes)
        truth.append(
            Instances(
                masks=encode(masks_MHW),
                labels_M=labels_M,
                scores_M=np.ones(len(labels_M), np.float32),
                boxes_M4=_boxes(masks_MHW),
            )
        )
        row = rows.get(sample.name)
        scored.append(row is not None and row["error_code"] == "")
        found.append(_found(row if scored[-1] else None, masks_MHW.shape[1:], classes))
    return _Images(truth, found, [s.patient for s in samples], np.array(scored, np.bool_))


def _found(
    row: dict[str, Any] | None, shape: tuple[int, ...], classes: tuple[str, ...]
) -> Instances:
    lesions = [] if row is None else row["lesions"]
    corners = [[one[k] for k in ("x0", "y0", "x1", "y1")] for one in lesions]
    counts = (row or {}).get("lesion_masks") or []
    if row is not None and (row["rows"], row["cols"]) != shape:
        raise DataError("a prediction is of another picture than its mask; score these files")
    return Instances(
        masks=[{"size": list(shape), "counts": c} for c in counts],
        labels_M=np.array([classes.index(one["label"]) + 1 for one in lesions], np.int64),
        scores_M=np.array([one["score"] for one in lesions], np.float32),
        boxes_M4=np.array(corners, np.float32).reshape(-1, 4),
    )


def _boxes(masks_MHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The smallest box around each mask, edges in px."""
    boxes = []
    for mask_HW in masks_MHW:
        rows, cols = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
        boxes.append([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)


def _figures(
    images: _Images, classes: tuple[str, ...], kind: Kind, job: EvaluationJob
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures of one kind of overlap on the scored images, FROC, and the worst case of all."""
    every = _drawn(images, classes, kind, job, np.ones(len(images.truth), np.bool_))
    scored = every
    if not images.scored_I.all():
        scored = _drawn(images, classes, kind, job, images.scored_I)
    found = {f"detection.{kind}.{k}": v for k, v in scored[0].items() if k in WORDS}
    found |= {f"detection.{k}": v for k, v in scored[0].items() if k.startswith("froc.")}
    if scored is not every:
        found |= {f"worst_case.detection.{kind}.{k}": v for k, v in every[0].items() if k in WORDS}
    return found, scored[1]


def _drawn(
    images: _Images,
    classes: tuple[str, ...],
    kind: Kind,
    job: EvaluationJob,
    kept_I: NDArray[np.bool_],
) -> tuple[dict[str, Figure], dict[str, Any]]:
    place = np.flatnonzero(kept_I)
    matches = Matches.of(
        [images.found[i] for i in place],
        [images.truth[i] for i in place],
        classes=classes,
        kind=kind,
    )
    group_I, groups = bootstrap.group([images.patients[i] for i in place])

    def statistic(weights_BG: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        weights_BI = weights_BG[:, group_I]
        froc = {f"froc.{k}": v for k, v in matches.froc(weights_BI).items()}
        return matches.figures(weights_BI) | froc

    by, width = job.resampling, max(len(matches.whole.image_D), len(place))
    values = statistic(np.ones((1, groups)))
    over_patients = bootstrap.bootstrap(
        groups, statistic, resamples=by.resamples, seed=by.seed, width=width
    )

    def alone(weights_BI: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return matches.figures(weights_BI)

    over_images = bootstrap.bootstrap(
        len(place), alone, resamples=by.resamples, seed=by.seed, width=width
    )
    size = Size(len(place), groups)
    return {
        name: bootstrap.figure(
            f"{_words(name)}, {'boxes' if kind == 'box' else 'masks'}",
            float(value[0]),
            over_patients=over_patients[name],
            over_slices=over_images.get(name),
            size=size,
        )
        for name, value in values.items()
    }, matches.froc_curve()


def _words(name: str) -> str:
    if name == "froc.mean":
        return "lesions found, mean of FROC's points"
    if name.startswith("froc.at_"):
        return f"lesions found at {name.removeprefix('froc.at_')} false positives an image"
    return WORDS[name]
