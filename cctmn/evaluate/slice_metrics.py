"""The part of an evaluation that is about classes of slices and patients.

In: an EvaluationJob with labels, and the predictions. Out: confusion matrices, figures with their
intervals, curves, cohorts, audit and cases; what names a patient goes to DIR/private.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cctmn import store
from cctmn.data.issues import few
from cctmn.data.labels import Labels, read_labels, read_table
from cctmn.errors import ConfigError
from cctmn.evaluate import audit, cases, cohorts
from cctmn.evaluate.join import NO_PREDICTION, Joined, Scored, join, read_scored
from cctmn.evaluate.options import EvaluationJob, Part, few_patients, file_name, model_of, put_names
from cctmn.identity import RunIdentity
from cctmn.metrics import bootstrap, classification, intervals, patients
from cctmn.metrics.calibration import Binned
from cctmn.metrics.intervals import Sample
from cctmn.model.probabilities import probabilities
from cctmn.read.intensity import InputContract
from cctmn.reporter import Reporter

Mask = NDArray[np.bool_]

CALIBRATION: Final = ("ece", "brier", "nll")
# COVIDx-CT's training split less the author's 3000 slices, by class (method.md, data sets)
REMAINING: Final = (26_201, 21_061, 11_520)


def evaluate(
    job: EvaluationJob, *, scored: Scored, model: dict[str, Any], report: Reporter
) -> Part:
    """Everything that labels tell. Raises a CctmnError for what the user can mend, before it
    writes anything.
    """
    assert job.labels is not None
    if not scored.classes:
        raise ConfigError(f"{job.out}: predictions of a detector, which names no class; --masks")
    labels = read_labels(job.labels, classes=scored.classes)
    joined = join(labels, scored, key=job.key, root=job.root)
    cohort_values = {columns: _values(joined, columns) for columns in job.by}
    names = joined.patients()
    pair, compared = (None, None) if job.against is None else _pair(job, joined, names, model)
    audited, training = (None, None) if job.training is None else _audit(job, labels)
    to = store.to_uri(job.to)
    _tell(joined, to, report)
    sample = _sample(joined, names, model)
    binned = Binned.of(
        joined.logits(),
        sample.truth_N,
        activation=model["activation"],
        temperature=model["temperature"],
    )
    measured = intervals.measure(sample, by=job.resampling, level="slices", binned=binned)
    found = {_id(name): figure for name, figure in measured.items()}
    of_patients, mixed = _patients(joined, names, model)
    sections: dict[str, Any] = {
        "labels": _about(labels, sample, names, job),
        "accounting": joined.accounting() | {"mixed_patients": mixed},
        "confusion": {"slice": _confusion(sample)},
        "curves": _curves(sample, "slice") | {"reliability": binned.reliability()},
    }
    if of_patients is not None:
        measured = intervals.measure(of_patients, by=job.resampling, level="patients")
        found |= {f"patient.{k}": v for k, v in measured.items() if "worst_case" not in k}
        sections["confusion"]["patient"] = _confusion(of_patients)
        sections["curves"] |= _curves(of_patients, "patient")
    if pair is not None:
        sections["comparison"] = compared
        differences = intervals.difference(*pair, by=job.resampling)
        found |= {f"difference.slice.{name}": figure for name, figure in differences.items()}
    if job.by:
        sections["cohorts"] = [
            {"by": list(columns), "cells": cohorts.cells(sample, values, by=job.resampling)}
            for columns, values in cohort_values.items()
        ]
    warnings = _warnings(joined, names, model)
    if audited is not None:
        sections["audit"] = audited
        warnings += audited["warnings"]
    training = training or model.get("training_slices")
    sections["training"] = {"slices": training} if training else None
    if job.gallery:
        sections["cases"] = cases.choose(joined, sample)
        drawn = cases.pictures(joined, sections["cases"], contract=_contract(scored), folder=to)
        report(f"{drawn} pictures for the gallery, in {job.to}/private/cases")
    return Part(sections, found, warnings)


def _contract(scored: Scored) -> InputContract:
    """The window that the pictures are looked at in: the model's."""
    older = RunIdentity.read(scored.manifest).values.get("model", {})
    card = (scored.manifest.get("model") or older).get("input") or older.get("input")
    return InputContract() if card is None else InputContract.from_card(card)


def _tell(joined: Joined, to: str, report: Reporter) -> None:
    """Count and name what was not joined: the first few to the person, all in private/."""
    place = joined.labels.place
    rest = zip(joined.labels.table[_column(joined)].to_pylist(), joined.code_N, strict=True)
    lost = [name for name, code in rest if code == NO_PREDICTION]
    names = dict.fromkeys(joined.unlabelled, "")
    if joined.scored.names is not None and names:
        columns = [joined.scored.names[c].to_pylist() for c in ("slice_id", "uri", "member")]
        for slice_id, uri, member in zip(*columns, strict=True):
            if slice_id in names:
                names[slice_id] = (
                    f"{store.display(uri)}::{member}" if member else (store.display(uri))
                )
    extra = [name or slice_id for slice_id, name in names.items()]
    if lost:
        report(f"{place}: {len(lost):,} labels without a prediction", names=few(lost))
    if extra:
        said = f"{joined.scored.out}: {len(extra):,} predictions without a label"
        report(said, names=few(extra))
    table = {
        "what": ["label without prediction"] * len(lost)
        + ["prediction without label"] * len(extra),
        "name": [*lost, *extra],
    }
    put_names(table, folder=to, name="unjoined.csv")


def _column(joined: Joined) -> str:
    columns = joined.labels.table.column_names
    return next(c for c in (joined.key, "uri", "name", "slice_id") if c in columns)


def _sample(
    joined: Joined, names: list[str], model: dict[str, Any], *, kept_N: Mask | None = None
) -> Sample:
    """The scored slices (of `kept_N` alone), with those that have no score beside them."""
    group_N, groups = bootstrap.group(names)
    truth_N, scored_N = joined.labels.truth_N, joined.scored_N
    p_NC = probabilities(
        joined.logits(), activation=model["activation"], temperature=model["temperature"]
    )
    unscored_N = ~scored_N
    if kept_N is not None:
        p_NC, scored_N = p_NC[kept_N[scored_N]], scored_N & kept_N
        unscored_N = np.zeros_like(scored_N)
    return Sample(
        classes=joined.scored.classes,
        truth_N=truth_N[scored_N],
        score_NC=p_NC,
        group_N=group_N[scored_N],
        groups=groups,
        unscored_truth=truth_N[unscored_N],
        unscored_group=group_N[unscored_N],
    )


def _patients(joined: Joined, names: list[str], model: dict[str, Any]) -> tuple[Sample | None, int]:
    """Known patients by their top slices, and how many have slices of several classes.

    Those have no class of their own and are left out. None without any known patient.
    """
    known_N = np.array([name != "" for name in names], np.bool_)
    group_N, groups = bootstrap.group([name for name in names if name])
    truth_G = patients.class_of(joined.labels.truth_N[known_N], group_N, groups=groups)
    sample = _sample(joined, names, model, kept_N=known_N)
    of_scored = group_N[joined.scored_N[known_N]]
    clear_G = truth_G >= 0
    seen_G = clear_G & (np.bincount(of_scored, minlength=groups) > 0)
    if not seen_G.any():
        return None, int((~clear_G).sum())
    p_GC = patients.top_mean(sample.score_NC, of_scored, groups=groups, m=model["top_m"])
    unseen_G = clear_G & ~seen_G
    seen, unseen = int(seen_G.sum()), int(unseen_G.sum())
    return Sample(
        classes=sample.classes,
        truth_N=truth_G[seen_G],
        score_NC=p_GC[seen_G],
        group_N=np.arange(seen),
        groups=seen + unseen,
        unscored_truth=truth_G[unseen_G],
        unscored_group=np.arange(seen, seen + unseen),
    ), int((~clear_G).sum())


def _pair(
    job: EvaluationJob, joined: Joined, names: list[str], model: dict[str, Any]
) -> tuple[tuple[Sample, Sample], dict[str, Any]]:
    """Both models on the slices that both have scored, and who the other is."""
    assert job.against is not None
    scored = read_scored(job.against)
    if scored.classes != joined.scored.classes:
        raise ConfigError(
            f"{job.against}: its model tells {few(scored.classes)}, that of {job.out} "
            f"{few(joined.scored.classes)}; compare models of the same classes"
        )
    other = join(joined.labels, scored, key=job.key, root=job.root)
    described = model_of(scored, None)
    both_N = joined.scored_N & other.scored_N
    if not both_N.any():
        raise ConfigError(f"{job.against}: no labelled slice has scores in both outputs")
    pair = (
        _sample(joined, names, model, kept_N=both_N),
        _sample(other, names, described, kept_N=both_N),
    )
    return pair, {
        "model_id": described["model_id"],
        "name": described["name"],
        "n": int(both_N.sum()),
        "patients": len(np.unique(pair[0].group_N)),
    }


def _values(joined: Joined, columns: tuple[str, ...]) -> list[list[str]]:
    """Of each column, the cohort that each scored slice belongs to."""
    kept = pa.array(joined.scored_N)
    return [cohorts.values_of(joined.column(name).filter(kept), name=name) for name in columns]


def _audit(job: EvaluationJob, labels: Labels) -> tuple[dict[str, Any], int]:
    """The evaluated set against the one trained on, and the latter's size."""
    assert job.training is not None
    assert job.labels is not None
    table, _ = read_table(job.training)
    sets = [
        audit.read_set(labels.table, name=file_name(job.labels)),
        audit.read_set(table, name=file_name(job.training)),
    ]
    overlaps = audit.compare(sets)
    put_names(audit.named(overlaps), folder=store.to_uri(job.to), name="audit.csv")
    return audit.summary(sets, overlaps), len(table)


def _about(labels: Labels, sample: Sample, names: list[str], job: EvaluationJob) -> dict[str, Any]:
    counts = np.bincount(labels.truth_N, minlength=len(sample.classes))
    return {
        "name": file_name(labels.place),
        "sha256": labels.sha256,
        "slices": len(labels.truth_N),
        "patients": len({name for name in names if name}),
        "unknown_patients": sum(not name for name in names),
        "by_class": dict(zip(sample.classes, counts.tolist(), strict=True)),
        "key": job.key,
    }


def _confusion(sample: Sample) -> dict[str, Any]:
    counts = sample.counts().sum(axis=0).astype(int)
    return {"matrix": counts[:, :-1].tolist(), "unscored": counts[:, -1].tolist()}


def _curves(sample: Sample, level: str) -> dict[str, Any]:
    return {
        f"{level}.{kind}.{name}": curve
        for name, ranking in sample.rankings().items()
        for kind, curve in classification.curves(ranking).items()
    }


def _id(name: str) -> str:
    """The entry of a figure of slices: worst_case.*, calibration.* or slice.*."""
    if name.startswith("worst_case."):
        return name
    return f"calibration.{name}" if name in CALIBRATION else f"slice.{name}"


def _warnings(joined: Joined, names: list[str], model: dict[str, Any]) -> list[str]:
    """What a reader must know before any figure."""
    counts = joined.accounting()
    known = {name for name in names if name}
    unknown = sum(not name for name in names)
    calibration = model.get("calibration") or {}
    by_class = tuple(np.bincount(joined.labels.truth_N, minlength=3).tolist())
    said = {
        "The model has parts with random weights: its scores mean nothing.": (
            model.get("trained") is False
        ),
        f"The scoring job is not finished; slices pending: {counts['pending']:,}.": (
            counts["pending"] > 0
        ),
        f"{unknown:,} labelled slices have no patient: each counts as one of its own, so the "
        "intervals are too narrow.": unknown > 0,
        f"{counts['abstained']:,} evaluated slices are flagged as outside what the model is made "
        "for; they count here all the same.": counts["abstained"] > 0,
        f"A patient's answer is the mean of the {model['top_m']} highest slices; no validation "
        "chose that number.": bool(known) and "top_m" not in calibration,
        "The temperature was fitted on these very labels: the calibration shown is not a test.": (
            calibration.get("labels_sha256") == joined.labels.sha256
        ),
        "These are the 58,782 slices that the author left of COVIDx-CT's training split: 606 of "
        "the 608 patients of his 3000 training slices have slices here too, so this is no "
        "independent test.": by_class == REMAINING,
    }
    return [*few_patients(len(known)), *(text for text, holds in said.items() if holds)]
