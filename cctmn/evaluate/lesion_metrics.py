"""The part of an evaluation that compares detected lesions with masks drawn by hand.

Slices whose mask shows no lesion are left out, as in the published method, and counted.

Reads: predictions with boxes (and masks, if they were written), and a folder as CNCB has it.
Writes: the published AP and COCO's, of boxes and masks, and FROC, with intervals over patients.

Shape suffixes: I images, B resamples, G patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.classes import LESION_MODES
from cctmn.contract import InputContract
from cctmn.data.files import stem
from cctmn.data.issues import first_few
from cctmn.data.labels import base_name
from cctmn.data.lesions import LesionSample, check_lesions, open_lesions, read_truth
from cctmn.errors import ConfigError, DataError
from cctmn.evaluate import lesion_cases
from cctmn.evaluate.join import Scored
from cctmn.evaluate.model import EvaluatedModel
from cctmn.evaluate.options import EvaluationOptions, Part, few_patients
from cctmn.metrics import bootstrap
from cctmn.metrics.detection import Instances, Kind
from cctmn.metrics.froc import Matches
from cctmn.metrics.intervals import Resampling
from cctmn.metrics.metric import DETECTION, FROC, KINDS, Metric, Size, catalogue
from cctmn.reporter import Reporter
from cctmn.rle import encode

Floats = NDArray[np.float64]

THREADS: Final = 8  # files read at the same time
NO_MASKS: Final = "The predictions hold only boxes; score with --set masks=true to compare masks."


@dataclass(frozen=True, eq=False)
class ComparedImages:
    """Images with true lesions and their predictions, in the same order."""

    truth: list[Instances]
    predicted: list[Instances]  # empty for an image without scores
    patients: list[str]
    scored_I: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """Metrics by their name in `metric.DETECTION` or `froc.<point>`, and the FROC curve."""

    metrics: dict[str, Metric]
    froc: dict[str, list[float]]


def evaluate(
    options: EvaluationOptions, *, scored: Scored, model: EvaluatedModel, report: Reporter
) -> Part:
    """Measure detection on the slices with masks.

    Raises a CctmnError for anything the user can correct.
    """
    assert options.masks is not None
    # 1. Read the masks, and find the predictions of their slices.
    classes = model.lesion_classes
    if classes not in LESION_MODES.values():
        raise ConfigError(
            "its manifest does not name the lesion classes; give the model with -m", options.out
        )
    opened = open_lesions(options.masks, names=options.mask_split)
    kept = check_lesions(opened, lesion_classes=classes, contract=InputContract(), threads=THREADS)
    for reason, names in kept.issues.kinds():
        report(f"masks: {reason}", names=names)
    rows = _rows(kept.samples, scored, place=options.masks)
    missing = [s.name for s in kept.samples if s.name not in rows]
    if missing:
        report(f"masks: {len(missing):,} slices without a prediction", names=first_few(missing))
    images = _images(kept.samples, rows, classes)
    if not images.scored_I.any():
        raise DataError(
            "every slice with lesions is an error row; give the output of readable slices",
            options.masks,
            options.out,
        )
    # 2. Measure boxes, and masks where the predictions have them. FROC is that of masks if it can.
    kinds: list[Kind] = ["box", "mask"] if scored.has_masks else ["box"]
    metrics: dict[str, Metric] = {}
    for kind in kinds:
        of_kind, froc = _with_worst_case(images, classes=classes, kind=kind, by=options.resampling)
        metrics |= of_kind
    # 3. Count, and warn.
    errors = sum(row["error_code"] != "" for row in rows.values())
    detection = {
        "images": len(kept.samples),
        "patients": len(set(images.patients)),
        "joined": int(images.scored_I.sum()),
        "missing": len(missing),
        "errors": errors,
        "without_lesion": len(kept.issues.empty),
        "unreadable": len(kept.issues.unreadable),
        "lesions": sum(len(one.labels_M) for one in images.truth),
        "froc_of": kinds[-1],
        "masks_sha256": _masks_sha256(kept.samples),
        "note": None if scored.has_masks else NO_MASKS,
    }
    warnings = [*model.notes, *few_patients({"with masks": len(set(images.patients))})]
    if unscored := len(missing) + errors:
        warnings.append(
            f"{unscored:,} of {len(kept.samples):,} slices with lesions have no scores: the "
            "detection metrics leave them out, and their worst case counts them as slices on "
            "which no lesion was detected."
        )
    # 4. Choose images to look at.
    sections: dict[str, Any] = {"detection": detection, "curves": {"froc": froc}}
    ids = [rows[s.name]["slice_id"] if s.name in rows else "" for s in kept.samples]
    if options.gallery:
        places = np.flatnonzero(images.scored_I)
        sections["cases"] = lesion_cases.choose(
            [images.predicted[i] for i in places],
            [images.truth[i] for i in places],
            ids=[ids[i] for i in places],
            patients=[images.patients[i] for i in places],
            kind=kinds[-1],
            scored=scored,
        )

    place_of = {ids[i]: int(i) for i in np.flatnonzero(images.scored_I)}

    def true_lesions(slice_id: str) -> list[dict[str, Any]] | None:
        place = place_of.get(slice_id)
        if place is None:
            return None
        return lesion_cases.true_lesions(images.truth[place], classes=classes)

    return Part(sections, metrics, warnings, true_lesions)


def measure_detection(
    images: ComparedImages,
    *,
    kept_I: NDArray[np.bool_],
    classes: tuple[str, ...],
    kind: Kind,
    by: Resampling,
) -> DetectionResult:
    """Measure detection on some of the images, comparing boxes or masks."""
    place = np.flatnonzero(kept_I)
    matches = Matches.from_instances(
        [images.predicted[i] for i in place],
        [images.truth[i] for i in place],
        classes=classes,
        kind=kind,
    )
    group_I, groups = bootstrap.group_patients([images.patients[i] for i in place])

    def over_patients(weights_BG: Floats) -> dict[str, Floats]:
        weights_BI = weights_BG[:, group_I]
        froc = {f"froc.{k}": v for k, v in matches.froc(weights_BI).items()}
        return matches.metrics(weights_BI) | froc

    def resampled(groups: int, statistic: bootstrap.Statistic) -> dict[str, Floats]:
        width = max(len(matches.all_classes.image_D), len(place))
        return bootstrap.bootstrap(
            groups, statistic, resamples=by.resamples, seed=by.seed, width=width
        )

    values = over_patients(np.ones((1, groups)))
    patients_B = resampled(groups, over_patients)
    images_B = resampled(len(place), matches.metrics)
    metrics = {}
    for name, value in values.items():
        is_froc = name.startswith("froc.")
        words = FROC[name.removeprefix("froc.")] if is_froc else DETECTION[name]
        id_ = f"detection.{name}" if is_froc else f"detection.{kind}.{name}"
        metrics[id_] = bootstrap.make_metric(
            float(value[0]),
            name=(id_, f"{words}, {KINDS[kind]}"),
            over_patients=patients_B[name],
            over_slices=images_B.get(name),
            size=Size(len(place), groups, groups),
        )
    return DetectionResult(metrics, matches.froc_curve())


def _with_worst_case(
    images: ComparedImages, *, classes: tuple[str, ...], kind: Kind, by: Resampling
) -> tuple[dict[str, Metric], dict[str, list[float]]]:
    """Return the metrics and the FROC curve of the scored images.

    If some images have no scores, `worst_case.` metrics count them as images without detections.
    """
    if images.scored_I.all():
        complete = measure_detection(
            images, kept_I=images.scored_I, classes=classes, kind=kind, by=by
        )
        return complete.metrics, complete.froc
    scored = measure_detection(images, kept_I=images.scored_I, classes=classes, kind=kind, by=by)
    every = np.ones(len(images.truth), np.bool_)
    worst = measure_detection(images, kept_I=every, classes=classes, kind=kind, by=by)
    descriptions = catalogue(())
    worst_metrics = {}
    for id_, metric in worst.metrics.items():
        if not id_.startswith("detection.froc."):
            worst_id = f"worst_case.{id_}"
            worst_metrics[worst_id] = replace(
                metric, id=worst_id, description=descriptions[worst_id]
            )
    return scored.metrics | worst_metrics, scored.froc


def _masks_sha256(samples: Sequence[LesionSample]) -> str:
    """Return a hash of the masks, by which a report knows evaluations of the same masks.

    It depends neither on names nor on order.
    """
    hashes = sorted(hashlib.sha256(store.read_all(one.mask)).hexdigest() for one in samples)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _rows(
    samples: Sequence[LesionSample], scored: Scored, *, place: str
) -> dict[str, dict[str, Any]]:
    """Return the prediction of each sample, with its lesions, by name. Raises DataError if none."""
    if scored.names is None:
        raise DataError(
            "OUT/private/inventory, which holds the names, is missing; run where it is", scored.out
        )
    wanted = {sample.name for sample in samples}
    names: dict[str, str] = {}
    seen: set[str] = set()
    columns = [scored.names[c].to_pylist() for c in ("slice_id", "uri", "member")]
    for slice_id, uri, member in zip(*columns, strict=True):
        name = stem(base_name(member or store.display(uri)))
        if name not in wanted:
            continue
        if name in seen:
            raise DataError(
                "more than one slice has this name; score only one of them", scored.out, name
            )
        names[slice_id] = name
        seen.add(name)
    ids = pa.array(list(names), pa.string())
    lists = ["slice_id", "error_code", "rows", "cols", "lesions"]
    lists += ["lesion_masks"] if scored.has_masks else []
    predictions = {}
    for file in scored.files:
        part = tables.read(file, lists)
        for row in part.filter(pc.is_in(part["slice_id"], value_set=ids)).to_pylist():
            predictions[names[row["slice_id"]]] = row
    if not predictions:
        raise DataError(
            "none of its slices has a prediction; give the output of these slices",
            place,
            f"the first is {samples[0].name}, OUT is {scored.out}",
        )
    return predictions


def _images(
    samples: Sequence[LesionSample], rows: dict[str, dict[str, Any]], classes: tuple[str, ...]
) -> ComparedImages:
    truth, predicted, scored = [], [], []
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
        predicted.append(_predicted(row if scored[-1] else None, masks_MHW.shape[1:], classes))
    patients = [sample.patient for sample in samples]
    return ComparedImages(truth, predicted, patients, np.array(scored, np.bool_))


def _predicted(
    row: dict[str, Any] | None, shape: tuple[int, ...], classes: tuple[str, ...]
) -> Instances:
    lesions = [] if row is None else row["lesions"]
    corners = [[one[k] for k in ("x0", "y0", "x1", "y1")] for one in lesions]
    counts = (row or {}).get("lesion_masks") or []
    if row is not None and (row["rows"], row["cols"]) != shape:
        raise DataError(
            f"{row['rows']} x {row['cols']} px, its mask has {shape[0]} x {shape[1]}; score "
            "the pictures that the masks belong to",
            f"slice {row['slice_id']}",
        )
    return Instances(
        masks=[{"size": list(shape), "counts": c} for c in counts],
        labels_M=np.array([classes.index(one["label"]) + 1 for one in lesions], np.int64),
        scores_M=np.array([one["score"] for one in lesions], np.float32),
        boxes_M4=np.array(corners, np.float32).reshape(-1, 4),
    )


def _boxes(masks_MHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the smallest box around each mask, M x 4, x0 y0 x1 y1 px."""
    boxes = []
    for mask_HW in masks_MHW:
        rows, cols = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
        boxes.append([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4)
