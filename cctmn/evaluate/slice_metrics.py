"""The part of an evaluation that compares predicted classes of slices and patients with labels.

Reads: the predictions, the labels, and what the options name (another model, a training set).
Writes: confusion matrices, metrics with their intervals, curves, cohorts, audit and cases. Anything
that identifies a patient goes to DIR/private.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cctmn import store
from cctmn.data.issues import first_few
from cctmn.data.labels import Labels, identities, read_labels, read_table
from cctmn.errors import ConfigError, DataError
from cctmn.evaluate import audit, cases, cohorts, independence, patient_cases
from cctmn.evaluate.join import NO_PREDICTION, Joined, Scored, join, read_scored
from cctmn.evaluate.known_sets import KnownSet, known_set
from cctmn.evaluate.model import EvaluatedModel, evaluated_model
from cctmn.evaluate.options import EvaluationOptions, Part, few_patients, file_name, put_names
from cctmn.evaluate.patient_sample import patient_slices
from cctmn.metrics import classification, comparison, intervals
from cctmn.metrics.calibration import Binned
from cctmn.metrics.intervals import ClassifiedSample
from cctmn.reporter import Reporter


def evaluate(
    options: EvaluationOptions, *, scored: Scored, model: EvaluatedModel, report: Reporter
) -> Part:
    """Measure classification of slices and patients.

    Raises a CctmnError for anything the user can correct, before anything is written.
    """
    assert options.labels is not None
    if not scored.classes:
        raise ConfigError(
            "predictions of a detector, which have no class; use --masks instead of --labels",
            options.out,
        )
    # 1. Read and join everything first, so that an error leaves nothing behind.
    labels = read_labels(options.labels, classes=scored.classes, label_map=options.label_map)
    joined = join(labels, scored, key=options.key, root=options.root)
    labels = joined.labels
    if not joined.scored_N.any():
        raise DataError(
            "no labelled slice has scores, so nothing can be measured; the error codes of OUT say "
            "why, score these slices again",
            options.out,
        )
    patients = patient_slices(joined)
    cohort_values = {columns: _values(joined, columns) for columns in options.by}
    pair, compared = None, None
    notes: list[str] = []
    if options.against is not None:
        pair, compared, notes = _pair(options, joined, model)
    audited, training = (None, None) if options.training is None else _audit(options, labels)
    to = store.to_uri(options.to)
    _report_unjoined(joined, to, report)
    # 2. Measure slices, then patients.
    known = known_set(identities(labels.table))
    sample = joined.sample(activation=model.activation, temperature=model.temperature)
    binned = Binned.from_logits(
        joined.logits(),
        sample.truth_N,
        activation=model.activation,
        temperature=model.temperature,
    )
    metrics = intervals.measure(sample, by=options.resampling, level="slice", binned=binned)
    kept_N = joined.scored_N.copy()
    kept_N[joined.scored_N] = ~joined.abstained()
    # A table of cohorts by this column gives these metrics, and hides those of few patients.
    is_cohort = any("abstained" in columns for columns in options.by)
    has_kept = 0 < kept_N.sum() < joined.scored_N.sum() and not is_cohort
    if has_kept:
        kept = joined.sample(
            activation=model.activation, temperature=model.temperature, kept_N=kept_N
        )
        metrics |= intervals.without_abstained(kept, by=options.resampling)
    of_patients = patients.sample(model)
    sections: dict[str, Any] = {
        "labels": _label_counts(joined, known),
        "accounting": joined.accounting() | {"several_diseases": patients.several},
        "confusion": {"slice": _confusion(sample)},
        "curves": _curves(sample, "slice") | {"reliability": binned.reliability()},
    }
    if of_patients is not None:
        metrics |= intervals.measure(of_patients, by=options.resampling, level="patient")
        sections["confusion"]["patient"] = _confusion(of_patients)
        sections["curves"] |= _curves(of_patients, "patient")
        put_names(patients.table(model), folder=to, name="patients.csv")
    # 3. Add what the options ask for: another model, cohorts, an audit, a gallery.
    if pair is not None:
        sections["comparison"] = compared
        metrics |= comparison.difference(*pair, by=options.resampling)
    if options.by:
        known_N = np.array([bool(name) for name in joined.patient_ids])[joined.scored_N]
        sections["cohorts"] = cohorts.tables(
            cohort_values,
            sample,
            known_N=known_N,
            without_abstained_N=kept_N[joined.scored_N] if has_kept else None,
        )
    fitted = independence.check(labels, model.fitted_on, needed=_fitted_sets(model, options))
    sections["independence"] = fitted.section
    for line in fitted.lines:
        report(line)
    warnings = _warnings(joined, model, known, has_kept=has_kept) + notes + fitted.warnings
    if audited is not None:
        sections["audit"] = audited
        warnings += audited["warnings"]
    training = training or model.training_slices
    sections["training"] = {"slices": training} if training else None
    if options.gallery:
        sections["cases"] = cases.choose(joined, sample)
        if of_patients is not None:
            sections["cases"] |= patient_cases.choose(
                patients, of_patients, scored=scored, model=model
            )
    return Part(sections, metrics, warnings)


def _fitted_sets(model: EvaluatedModel, options: EvaluationOptions) -> tuple[str, ...]:
    """Return the sets that must be compared with the labels. An audit compares the first."""
    audited = () if options.training is None else ("training",)
    return tuple(name for name in model.fitted_sets if name not in audited)


def _report_unjoined(joined: Joined, to: str, report: Reporter) -> None:
    """Report the number and the first names of unjoined slices, and write all to private/."""
    labels = joined.labels
    label_names = labels.table[_name_column(joined)].to_pylist()
    without_prediction = [
        name for name, code in zip(label_names, joined.code_N, strict=True) if code == NO_PREDICTION
    ]
    without_label = _prediction_names(joined)
    if without_prediction:
        report(
            f"{len(without_prediction):,} labels without a prediction",
            names=first_few(without_prediction),
        )
    if without_label:
        report(
            f"{len(without_label):,} predictions without a label",
            names=first_few(without_label),
        )
    table = {
        "problem": ["label without prediction"] * len(without_prediction)
        + ["prediction without label"] * len(without_label),
        "name": [*without_prediction, *without_label],
    }
    put_names(table, folder=to, name="unjoined.csv")


def _prediction_names(joined: Joined) -> list[str]:
    """Return the names of predictions without a label, or their slice_ids if there are no names."""
    names = dict.fromkeys(joined.unlabelled, "")
    if joined.scored.names is not None and names:
        columns = [joined.scored.names[c].to_pylist() for c in ("slice_id", "uri", "member")]
        for slice_id, uri, member in zip(*columns, strict=True):
            if slice_id in names:
                shown = store.display(uri)
                names[slice_id] = f"{shown}::{member}" if member else shown
    return [name or slice_id for slice_id, name in names.items()]


def _name_column(joined: Joined) -> str:
    columns = joined.labels.table.column_names
    return next(c for c in (joined.key, "uri", "name", "slice_id") if c in columns)


def _pair(
    options: EvaluationOptions, joined: Joined, model: EvaluatedModel
) -> tuple[tuple[ClassifiedSample, ClassifiedSample], dict[str, Any], list[str]]:
    """Return both models on the slices that both scored, the section `comparison`, and notes."""
    assert options.against is not None
    if options.key == "patient":
        raise ConfigError("two outputs are compared by slice; give labels with uri or name")
    scored = read_scored(options.against)
    if scored.classes != joined.scored.classes:
        raise ConfigError(
            f"its model has the classes {first_few(scored.classes)}, the other "
            f"{first_few(joined.scored.classes)}; compare models of the same classes",
            options.against,
            options.out,
        )
    other = join(joined.labels, scored, key=options.key, root=options.root)
    other_model = evaluated_model(scored, folder=None)
    both_N = joined.scored_N & other.scored_N
    if not both_N.any():
        raise ConfigError(
            "no labelled slice has scores in both outputs; compare outputs of the same slices",
            options.against,
        )
    one, two = (
        each.sample(activation=m.activation, temperature=m.temperature, kept_N=both_N)
        for each, m in ((joined, model), (other, other_model))
    )
    # The patients of both are those of the labels, or of this output: keyed ids differ between
    # outputs.
    two = replace(two, group_N=one.group_N, groups=one.groups)
    return (
        (one, two),
        {
            "model_id": other_model.model_id,
            "name": other_model.name,
            "n": int(both_N.sum()),
            "patients": len(np.unique(one.group_N)),
            **scored.computed.as_json(),
        },
        joined.scored.computed.difference(
            scored.computed, ours="These predictions", theirs="those of the other model"
        ),
    )


def _values(joined: Joined, columns: tuple[str, ...]) -> list[list[str]]:
    """Return the cohort of each scored slice, for each column."""
    kept = pa.array(joined.scored_N)
    return [cohorts.values_of(joined.column(name).filter(kept), name=name) for name in columns]


def _audit(options: EvaluationOptions, labels: Labels) -> tuple[dict[str, Any], int]:
    """Compare the evaluated set with the training set; return the counts and the latter's size."""
    assert options.training is not None
    assert options.labels is not None
    table, _ = read_table(options.training)
    sets = [
        audit.read_set(labels.table, name=file_name(options.labels)),
        audit.read_set(table, name=file_name(options.training)),
    ]
    overlaps = audit.compare(sets)
    put_names(audit.named(overlaps), folder=store.to_uri(options.to), name="audit.csv")
    return audit.summary(sets, overlaps), len(table)


def _label_counts(joined: Joined, known: KnownSet | None) -> dict[str, Any]:
    labels, names = joined.labels, joined.patient_ids
    counts = np.bincount(labels.truth_N, minlength=len(joined.scored.classes))
    return {
        "name": file_name(labels.place),
        "sha256": labels.sha256,
        "slices": len(labels.truth_N),
        "patients": len({name for name in names if name}),
        "unknown_patients": sum(not name for name in names),
        "by_class": dict(zip(joined.scored.classes, counts.tolist(), strict=True)),
        "key": joined.key,
        "known_set": None if known is None else known.name,
    }


def _confusion(sample: ClassifiedSample) -> dict[str, Any]:
    counts = sample.counts().sum(axis=0).astype(int)
    return {"matrix": counts[:, :-1].tolist(), "unscored": counts[:, -1].tolist()}


def _curves(sample: ClassifiedSample, level: str) -> dict[str, Any]:
    return {
        f"{level}.{kind}.{name}": curve
        for name, ranking in sample.rankings().items()
        for kind, curve in classification.curves(ranking).items()
    }


def _warnings(
    joined: Joined, model: EvaluatedModel, known: KnownSet | None, *, has_kept: bool
) -> list[str]:
    """Return what a reader must know before any number.

    `has_kept` says whether there are metrics without abstained slices.
    """
    counts = joined.accounting()
    names = joined.patient_ids
    num_known = len({name for name in names if name})
    num_unknown = sum(not name for name in names)
    warnings = [
        (
            not model.trained,
            "The model has parts with random weights: its scores have no meaning.",
        ),
        (
            counts["pending"] > 0,
            f"The scoring job is not finished: {counts['pending']:,} slices are pending.",
        ),
        (
            num_unknown > 0,
            f"The patient of {num_unknown:,} labelled slices is unknown: each counts as a patient "
            "of its own, so the intervals are too narrow.",
        ),
        (
            joined.labels.of_patients,
            "The labels are of patients: each slice has the label of its patient. Most slices of a "
            "sick patient may be clean, so the metrics of slices mean little.",
        ),
        (
            counts["abstained"] > 0,
            f"{counts['abstained']:,} evaluated slices are flagged as outside what the model is "
            "made for. The metrics of slices include them"
            + (", and are given without them too." if has_kept else "."),
        ),
        (
            num_known > 0 and not model.rule_is_fitted,
            f"A patient is judged by the {model.patient_rule.top_m} slices with the strongest "
            "evidence of disease. That rule was not fitted on validation patients.",
        ),
        (
            model.calibration_sha256 == joined.labels.sha256 and not model.fitted_on,
            "The temperature was fitted on these very labels, so the calibration shown here is "
            "not a test.",
        ),
    ]
    of_classes = {
        name: len({p for p, t in zip(names, joined.labels.truth_N, strict=True) if t == k and p})
        for k, name in enumerate(joined.scored.classes)
    }
    texts = [*model.notes, *few_patients(of_classes)] + [text for holds, text in warnings if holds]
    texts += [*joined.labels.notes, *joined.notes]
    return [*texts, known.warning] if known is not None and known.warning else texts
