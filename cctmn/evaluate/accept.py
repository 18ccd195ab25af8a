"""A hospital's acceptance test: criteria that were fixed before, judged on labelled scans.

The threshold is a number of the criteria file, or is chosen on validation data that shares no
patient and no slice with the tested ones.

Reads: a criteria file, an output folder, labels and, for a threshold to choose, the same two of
validation data.
Writes: DIR/acceptance.json, which identifies nobody.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from cctmn import store, versions
from cctmn.data.labels import read_labels
from cctmn.errors import (
    EXIT_NOT_ACCEPTED,
    EXIT_OK,
    EXIT_TOO_FEW,
    ConfigError,
    DataError,
    ResumeError,
)
from cctmn.evaluate import audit, independence, verdicts
from cctmn.evaluate.criteria import Criteria, read_criteria
from cctmn.evaluate.fit_calibration import Joining
from cctmn.evaluate.join import Joined, join, read_scored
from cctmn.evaluate.model import EvaluatedModel, evaluated_model
from cctmn.evaluate.observations import Observations, check_positive, observe
from cctmn.evaluate.options import file_name
from cctmn.metrics.binary import Conditions, decision_curve, threshold_for
from cctmn.metrics.proportions import FEW_PATIENTS
from cctmn.numerics import calibration_note
from cctmn.reporter import Reporter, silent

FILE: Final = "acceptance.json"
FORMAT: Final = 1
EXIT_CODES: Final = {
    verdicts.ACCEPTED: EXIT_OK,
    verdicts.FAIL: EXIT_NOT_ACCEPTED,
    verdicts.TOO_FEW: EXIT_TOO_FEW,
}


@dataclass(frozen=True)
class AcceptanceOptions:
    """The criteria, the predictions to judge, their labels, and the folder of the result."""

    criteria: str  # TOML file
    out: str  # output folder of a scoring run
    labels: str
    to: str
    # The label map holds for validation labels too.
    joining: Joining = field(default_factory=Joining)
    model: str | None = None  # the model that scored `out`; its card has its calibration
    overwrite: bool = False  # replace another test in `to`


def accept(options: AcceptanceOptions, *, report: Reporter = silent) -> dict[str, Any]:
    """Write DIR/acceptance.json and return its content.

    Raises a CctmnError for anything the user can correct, before anything is written.
    """
    # 1. Read everything, and refuse what would not be a test.
    criteria = read_criteria(options.criteria)
    tested, model = _read(options, criteria=criteria)
    to = store.to_uri(options.to)
    if model.calibration_sha256 == tested.joined.labels.sha256:
        raise DataError(
            "the model was calibrated on these very labels; test it on other patients",
            options.labels,
        )
    fitted = independence.check(tested.joined.labels, model.fitted_on, needed=model.fitted_sets)
    if fitted.warnings:
        raise DataError(
            f"{fitted.warnings[0].removesuffix('.')}; test it on other patients", options.labels
        )
    point, notes = _operating_point(options, criteria=criteria, tested=tested, model=model)
    # 2. Judge each criterion.
    rules = criteria.rules
    at = Conditions(point["threshold"], rules.prevalence, rules.two_sided_level)
    rows = verdicts.judge(criteria, tested, at=at)
    verdict = verdicts.overall(rows)
    # 3. Describe it all, so that the test can be repeated.
    labels, scored = tested.joined.labels, tested.joined.scored
    content: dict[str, Any] = {
        "format": FORMAT,
        "made": {
            "cctmn": versions.libraries()["cctmn"],
            "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        "title": rules.title,
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "criteria": rows,
        "rules": {
            "prevalence": rules.prevalence,
            "level": rules.level,
            "sided": rules.sided,
            "fewest_patients": rules.fewest_patients,
        },
        "operating_point": point,
        "tested": _counts(tested),
        "criteria_file": {"name": file_name(options.criteria), "sha256": criteria.sha256},
        "labels": {"name": file_name(options.labels), "sha256": labels.sha256},
        "predictions": {
            "fingerprint": scored.manifest.get("fingerprint"),
            "sha256": _predictions_sha256(tested.joined),
            **scored.computed.as_json(),
        },
        "model": model.as_json(),
        "decision_curve": decision_curve(tested.sample, prevalence=rules.prevalence),
        "notes": [
            *_notes(tested, model, unit=criteria.point.unit),
            *notes,
            *fitted.section["notes"],
        ],
        "versions": versions.libraries(),
    }
    _check_free(to, content=content, overwrite=options.overwrite)
    for note in content["notes"]:
        report(f"note: {note}")
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    store.put(store.join(to, FILE), text.encode())
    return content


def _read(
    options: AcceptanceOptions, *, criteria: Criteria, validation: bool = False
) -> tuple[Observations, EvaluatedModel]:
    """Read and join the tested data, or those on which the threshold is chosen."""
    point, joining = criteria.point, options.joining
    out, place, key, root = options.out, options.labels, joining.key, joining.root
    if validation:
        out, place = criteria.below(point.out), criteria.below(point.labels)
        key, root = point.key, criteria.below(point.root) if point.root else None
        out, place = store.display(out), store.display(place)
    scored = read_scored(out)
    if not scored.classes:
        raise ConfigError(
            "predictions of a detector, which have no class; give those of a classifier", out
        )
    check_positive(scored.classes, positive=point.positive, place=criteria.place)
    model = evaluated_model(scored, folder=options.model)
    labels = read_labels(place, classes=scored.classes, label_map=joining.label_map)
    joined = join(labels, scored, key=key, root=root)
    if point.unit == "patient" and not any(joined.patient_ids):
        raise DataError(
            "the patient of every slice is unknown; add a column patient, or judge slices "
            '(unit = "slice")',
            place,
        )
    return observe(joined, model, point=point), model


def _operating_point(
    options: AcceptanceOptions, *, criteria: Criteria, tested: Observations, model: EvaluatedModel
) -> tuple[dict[str, Any], list[str]]:
    """Return the section `operating_point`, with the threshold, and notes."""
    point = criteria.point
    section: dict[str, Any] = {"unit": point.unit, "positive": point.positive}
    if not point.is_chosen:
        return section | {"threshold": point.threshold, "chosen_on": None}, []
    validation, other = _read(options, criteria=criteria, validation=True)
    place = validation.joined.labels.place
    if other.model_id != model.model_id:
        raise ConfigError(
            "operating_point.out: its predictions are of another model; score the validation data "
            "with the tested model",
            criteria.place,
            f"{other.model_id}, not {model.model_id}",
        )
    notes = _check_apart(validation.joined, tested.joined)
    notes += tested.joined.scored.computed.difference(
        validation.joined.scored.computed,
        ours="The tested predictions",
        theirs="those of the validation data, on which the threshold was chosen,",
    )
    threshold = threshold_for(validation.sample, sensitivity=point.sensitivity)
    if threshold is None:
        raise DataError(
            f"operating_point.sensitivity: {point.sensitivity:g} is not reached at any threshold, "
            "as too few positives have a score; give more validation data",
            place,
        )
    labels = validation.joined.labels
    chosen = {
        "sensitivity": point.sensitivity,
        "labels": file_name(place),
        "labels_sha256": labels.sha256,
        "fingerprint": validation.joined.scored.manifest.get("fingerprint"),
        **_counts(validation),
    }
    sick = validation.sample.part(validation.sample.positive_N).patients
    if sick < FEW_PATIENTS:
        notes.append(f"The threshold was chosen on only {sick} positive patients.")
    return section | {"threshold": threshold, "chosen_on": chosen}, notes


def _check_apart(validation: Joined, tested: Joined) -> list[str]:
    """Raise DataError if the validation data share a file, patients or slices with the tested ones.

    The result says what could not be compared.
    """
    place = validation.labels.place
    if validation.labels.sha256 == tested.labels.sha256:
        raise DataError(
            "operating_point.labels: the same file as the tested labels; choose the threshold on "
            "other patients",
            place,
        )
    sets = [
        audit.read_set(one.labels.table, name=name)
        for one, name in ((validation, "validation"), (tested, "test"))
    ]
    [overlap] = audit.compare(sets)
    shared = {kind: set(overlap.shared[kind] or ()) for kind in ("patients", "slices")}
    if _same_key(validation, tested):
        for kind, column in (("patients", "patient_key"), ("slices", "slice_id")):
            of_both = [
                {key for key in one.scored.table[column].take(_rows(one)).to_pylist() if key}
                for one in (validation, tested)
            ]
            # The same patient has a name in the labels and a keyed id; one of them is enough.
            shared[kind] = shared[kind] or of_both[0] & of_both[1]
    if any(shared.values()):
        counts = " and ".join(f"{len(names):,} {kind}" for kind, names in shared.items() if names)
        raise DataError(
            f"operating_point.labels: shares {counts} with the tested labels; choose the threshold "
            "on other patients",
            place,
        )
    return [
        f"The patient of {one.unknown:,} of {one.lines:,} slices of the {one.name} labels is "
        "unknown, so shared patients cannot be excluded."
        for one in sets
        if one.unknown
    ]


def _same_key(one: Joined, other: Joined) -> bool:
    """Return whether ids of patients and slices in both outputs come from the same secret key."""
    if one.scored.out == other.scored.out:
        return True
    keys = [store.read_optional(store.join(j.scored.out, "private", "key")) for j in (one, other)]
    return keys[0] is not None and keys[0] == keys[1]


def _rows(joined: Joined) -> pa.Array:
    return pa.array(joined.row_N[joined.row_N >= 0])


def _counts(observed: Observations) -> dict[str, int]:
    sample = observed.sample
    return {
        "patients": sample.patients,
        "slices": int(sample.slices_N.sum()),
        "positive": int(sample.positive_N.sum()),
        "negative": int((~sample.positive_N).sum()),
        "unscored": observed.unscored,
    }


def _notes(tested: Observations, model: EvaluatedModel, *, unit: str) -> list[str]:
    """Return what a reader must know beside the verdict."""
    labels, counts = tested.joined.labels, tested.joined.scored.accounting()
    noun = "patients" if unit == "patient" else "slices"
    texts = [
        (
            not model.trained,
            "The model has parts with random weights: its scores have no meaning.",
        ),
        (
            counts["pending"] > 0,
            f"The scoring job is not finished: {counts['pending']:,} slices are pending.",
        ),
        (
            tested.unscored > 0,
            f"{tested.unscored:,} labelled {noun} without a usable score count as wrong.",
        ),
        (
            tested.unknown > 0 and unit == "patient",
            f"{tested.unknown:,} labelled slices are left out, as their patient is unknown.",
        ),
        (
            tested.unknown > 0 and unit == "slice",
            f"The patient of {tested.unknown:,} labelled slices is unknown: each counts as a "
            "patient of its own, so the bounds are too narrow.",
        ),
        (
            labels.of_patients and unit == "slice",
            "The labels are of patients: each slice has the label of its patient, also where it "
            "shows no disease.",
        ),
    ]
    held = [text for holds, text in texts if holds]
    computed = tested.joined.scored.computed
    held += computed.notes
    held += calibration_note(model.shown.get("calibration") or {}, computed.numerics)
    return [*model.notes, *held, *labels.notes, *tested.joined.notes]


def _predictions_sha256(joined: Joined) -> str:
    """Return the SHA-256 of the predictions: ids, logits, and what decides about their use."""
    table = joined.scored.table
    columns = ["slice_id", "series_key", "error_code", "abstained"]
    columns += [f"logit_{name}" for name in joined.scored.classes]
    rows = table.select(columns).sort_by("slice_id").to_pylist()
    digest = hashlib.sha256()
    for row in rows:
        values = [None if v is None or v != v else v for v in row.values()]
        digest.update(json.dumps(values).encode() + b"\n")
    return digest.hexdigest()


def _check_free(to: str, *, content: dict[str, Any], overwrite: bool) -> None:
    """Raise ResumeError if the folder holds the result of another test."""
    data = None if overwrite else store.read_optional(store.join(to, FILE))
    if data is None:
        return
    try:
        held = json.loads(data)
        same = all(held[k] == content[k] for k in ("criteria_file", "labels", "predictions"))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ResumeError(
            "holds the result of another acceptance test; give another -o, or --overwrite",
            store.display(to),
        )
