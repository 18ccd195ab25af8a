"""One row per study: its class, the slices that decide, and how much of the lung is diseased.

A study often has several series of the same scan, reconstructed in different ways. One of them is
chosen, so that no slice counts twice; the rows of all others stay in the predictions. Errors and
abstained slices say nothing about a study. Slices without a header belong to no study.

Reads: OUT/predictions.
Writes: OUT/studies.

Shape suffixes: N slices, S series, G studies, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cctmn import schema, store, study_rows
from cctmn.acquisition import is_lung_kernel
from cctmn.errors import state_of
from cctmn.metrics.patients import PatientRule, classes_of
from cctmn.model.probabilities import probabilities

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Series whose slices are closer than this are equally thin: thin-section CT of the lung ends at
# 1.5 mm (Fleischner Society, Radiology 2017;284:228).
THIN_MM: Final = 1.5
# A series covers a scan if it has this fraction of the longest one's length.
WHOLE: Final = 0.8
# Beyond a gap of this size, or of three usual distances, nothing is said about what lies between.
GAP_MM: Final = 12.0
# Positions closer than this are one position.
SAME_MM: Final = 0.01


@dataclass(frozen=True)
class StudyRule:
    """What a model's card says about the way from logits to the class of a study."""

    activation: str  # "sigmoid" or "softmax"
    temperature: float = 1.0
    patients: PatientRule = field(default_factory=PatientRule)


def write(out: str, *, rule: StudyRule) -> pa.Table:
    """Write OUT/studies from OUT/predictions and return it: one row per study.

    The memory does not grow with the number of slices, but with that of studies.
    """
    folder = store.join(out, "studies")
    store.make_folder(folder)
    table = tabulate(store.join(out, "predictions"), rule=rule)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put(store.join(folder, "studies.parquet"), buffer.getvalue())
    return table


def tabulate(predictions: str, *, rule: StudyRule) -> pa.Table:
    """Return one row per study in a folder of predictions, sorted by study key."""
    classes, parts = study_rows.read(predictions)
    tables_of_parts = [_tabulate(_StudySlices.of(part, classes), rule=rule) for part in parts]
    table = pa.concat_tables(tables_of_parts)
    known, of_patient = np.unique(
        table["patient_key"].drop_null().to_numpy().astype(str), return_counts=True
    )
    number = dict(zip(known.tolist(), of_patient.tolist(), strict=True))
    studies = [number.get(key) for key in table["patient_key"].to_pylist()]
    at = table.schema.get_field_index("patient_studies")
    return table.set_column(at, table.field(at), pa.array(studies, table.field(at).type))


def _tabulate(slices: _StudySlices, *, rule: StudyRule) -> pa.Table:
    columns = _whole_studies(slices)
    choice = _choose_series(slices)
    used_N = slices.usable_N & (slices.series_N == choice.series_G[slices.study_N])
    columns |= {"series_key": choice.keys_G, "series_reason": choice.reasons_G}
    columns |= _lesions(slices, used_N)
    columns |= _classes(slices, used_N, rule=rule)
    return pa.table(columns, schema=schema.studies(slices.classes))


def chosen_series(predictions: str) -> dict[str, str | None]:
    """Return the key of the series that stands for each study in a folder of predictions.

    It is "" where the slices of the study have no series, and None without a usable slice.
    """
    chosen: dict[str, str | None] = {}
    classes, parts = study_rows.read(predictions, masks=False)
    for part in parts:
        slices = _StudySlices.of(part, classes)
        series_G = _choose_series(slices).series_G
        keys = [None if series < 0 else slices.series_keys[series] for series in series_G]
        chosen |= zip(slices.study_keys, keys, strict=True)
    return chosen


@dataclass(frozen=True, eq=False)
class _StudySlices:
    """The rows of all studies; rows without a study are left out."""

    table: pa.Table
    classes: tuple[str, ...]
    study_keys: list[str]
    study_N: Indices  # index of each row's study
    series_keys: list[str]  # "" stands for the rows of a study that have no series
    series_N: Indices  # index of each row's series, which belongs to one study only
    study_S: Indices
    usable_N: Bools  # scored and not abstained
    area_px_N: Floats  # of all lesions of a slice together; NaN without masks

    @classmethod
    def of(cls, table: pa.Table, classes: tuple[str, ...]) -> _StudySlices:
        """Take the rows of whole studies, in any order."""
        # So that the result does not depend on the files in which the rows are.
        table = table.sort_by([("study_key", "ascending"), ("slice_id", "ascending")])
        studies = table["study_key"].to_numpy()
        keys, study_N = np.unique(studies.astype(str), return_inverse=True)
        series = table["series_key"].fill_null("").to_numpy().astype(str)
        pairs = np.char.add(np.char.add(studies.astype(str), "/"), series)
        names, first_S, series_N = np.unique(pairs, return_index=True, return_inverse=True)
        scored = pc.equal(table["error_code"], "")
        usable = pc.and_not(scored, table["abstained"].fill_null(False))
        return cls(
            table=table,
            classes=classes,
            study_keys=keys.tolist(),
            study_N=study_N,
            series_keys=[name.partition("/")[2] for name in names.tolist()],
            series_N=series_N,
            study_S=study_N[first_S],
            usable_N=np.asarray(usable.to_numpy(), np.bool_),
            area_px_N=np.asarray(table["area_px"].to_numpy(), np.float64),
        )

    def numbers(self, name: str) -> Floats:
        """Return a column as numbers, NaN for null."""
        return np.asarray(pc.cast(self.table[name], pa.float64()).to_numpy(), np.float64)

    def per_study(self, chosen_N: Bools) -> Indices:
        """Count the chosen slices of each study."""
        return np.bincount(self.study_N[chosen_N], minlength=len(self.study_keys))


def _whole_studies(slices: _StudySlices) -> dict[str, Any]:
    """Return the columns that count all series of a study."""
    studies = len(slices.study_keys)
    code_N = slices.table["error_code"].to_pylist()
    state_N = np.array([state_of(code) for code in code_N], "U16")
    abstained_N = np.asarray(slices.table["abstained"].fill_null(False).to_numpy(), np.bool_)
    ok_N, passed_N = state_N == "ok", state_N == "passed_over"
    real_S = np.bincount(slices.series_N[~passed_N], minlength=len(slices.series_keys)) > 0
    patients: list[str | None] = [None] * studies
    flags: list[set[str]] = [set() for _ in range(studies)]
    of_rows = (slices.table[name].to_pylist() for name in ("patient_key", "flags"))
    for study, patient, named, ok in zip(slices.study_N, *of_rows, ok_N, strict=True):
        patients[study] = patients[study] or patient
        if ok:
            flags[study].update(named or ())
    return {
        "study_key": slices.study_keys,
        "patient_key": patients,
        "patient_studies": [None] * studies,  # of all parts together
        "num_series": np.bincount(slices.study_S[real_S], minlength=studies),
        "num_slices": slices.per_study(~passed_N),
        "num_errors": slices.per_study(state_N == "error"),
        "num_passed_over": slices.per_study(passed_N),
        "num_abstained": slices.per_study(ok_N & abstained_N),
        "flags": [sorted(names) for names in flags],
        "model_id": _first_of_studies(slices, "model_id"),
    }


def _first_of_studies(slices: _StudySlices, name: str) -> list[Any]:
    _, first_G = np.unique(slices.study_N, return_index=True)
    return list(slices.table[name].take(pa.array(first_G)).to_pylist())


@dataclass(frozen=True, eq=False)
class _SeriesChoice:
    series_G: Indices  # -1 without a usable slice
    keys_G: list[str | None]
    reasons_G: list[str | None]


def _choose_series(slices: _StudySlices) -> _SeriesChoice:
    """Choose the series of each study, and say which rule of SERIES_REASONS decided."""
    number_S = np.bincount(slices.series_N[slices.usable_N], minlength=len(slices.series_keys))
    derived_N = _derived(slices.table)
    soft_N = ~np.array([is_lung_kernel(name) for name in slices.table["kernel"].to_pylist()], bool)
    z_N = slices.numbers("slice_z_mm")
    ranks: list[list[tuple[tuple[float, ...], str, int]]] = [[] for _ in slices.study_keys]
    longest_G = np.zeros(len(slices.study_keys))
    order_N = np.argsort(slices.series_N, kind="stable")
    rows_S = np.split(order_N, np.cumsum(np.bincount(slices.series_N))[:-1])
    length_S = np.zeros(len(number_S))
    distance_S = np.full(len(number_S), np.inf)
    for series, rows in enumerate(rows_S):
        z = _positions(z_N[rows[slices.usable_N[rows]]])
        if len(z) > 1:
            length_S[series], distance_S[series] = z[-1] - z[0], np.median(np.diff(z))
            study = slices.study_S[series]
            longest_G[study] = max(longest_G[study], length_S[series])
    for series in np.flatnonzero(number_S).tolist():
        study, rows = slices.study_S[series], rows_S[series]
        rows = rows[slices.usable_N[rows]]
        key = (
            float(derived_N[rows].mean() > 0.5),
            float(length_S[series] < WHOLE * longest_G[study]),
            max(float(round(distance_S[series], 2)), THIN_MM),
            float(soft_N[rows].mean() > 0.5),
            -float(number_S[series]),
        )
        ranks[study].append((key, slices.series_keys[series], series))
    chosen = [min(rank) if rank else None for rank in ranks]
    reasons = [_reason(sorted(rank)) if rank else None for rank in ranks]
    return _SeriesChoice(
        np.array([-1 if one is None else one[2] for one in chosen], np.int64),
        [None if one is None else one[1] or None for one in chosen],
        reasons,
    )


def _derived(table: pa.Table) -> Bools:
    """Return which slices were computed from other images, by flag or image type."""
    columns = (table[name].to_pylist() for name in ("flags", "image_type"))
    return np.array(
        [
            "derived" in (flags or ()) or (image_type or "").startswith("DERIVED")
            for flags, image_type in zip(*columns, strict=True)
        ],
        np.bool_,
    )


def _reason(ranked: Sequence[tuple[tuple[float, ...], str, int]]) -> str:
    only, *rules, last = schema.SERIES_REASONS
    if len(ranked) == 1:
        return only
    (best, *_), (second, *_) = ranked[:2]
    differs = (rule for rule, a, b in zip(rules, best, second, strict=True) if a != b)
    return next(differs, last)


def _positions(z: Floats) -> Floats:
    """Return the known positions in mm, sorted, each once."""
    z = np.sort(z[np.isfinite(z)])
    return z[np.concatenate([[True], np.diff(z) > SAME_MM])] if len(z) else z


def _lesions(slices: _StudySlices, used_N: Bools) -> dict[str, Any]:
    """Return the columns about the lesions of the used slices."""
    studies = len(slices.study_keys)
    pixel_mm2_N = slices.numbers("spacing_row_mm") * slices.numbers("spacing_col_mm")
    area_mm2_N = slices.area_px_N * pixel_mm2_N
    z_N = slices.numbers("slice_z_mm")
    lesions_N = np.nan_to_num(slices.numbers("num_lesions"))
    order = np.flatnonzero(used_N)
    order = order[np.argsort(slices.study_N[order], kind="stable")]
    ends = np.cumsum(slices.per_study(used_N))
    largest, volume, distance = [], [], []
    for rows in np.split(order, ends[:-1]) if studies else []:
        area, z = area_mm2_N[rows], z_N[rows]
        known = len(rows) > 0 and bool(np.isfinite(area).all())
        largest.append(float(area.max()) if known else None)
        positions = _positions(z)
        distance.append(float(np.median(np.diff(positions))) if len(positions) > 1 else None)
        located = known and bool(np.isfinite(z).all()) and len(positions) > 1
        volume.append(volume_ml(area, z) if located else None)
    weights = lesions_N * used_N
    return {
        "num_used": slices.per_study(used_N),
        "slice_distance_mm": distance,
        "num_lesions": np.bincount(slices.study_N, weights, minlength=studies).astype(np.int64),
        "lesion_area_mm2": largest,
        "lesion_volume_ml": volume,
    }


def volume_ml(area_mm2: Floats, z_mm: Floats) -> float:
    """Return the volume in mL of what has these areas at these positions along the body.

    A slice stands for the body up to half-way to its neighbours, so that neither the thickness of
    overlapping slices nor uneven distances matter. Slices at one position count as their mean.
    Across a gap of more than GAP_MM and of three median distances, a slice stands for half a median
    distance only.
    """
    z = _positions(z_mm)
    # A position that was dropped as equal lies at most SAME_MM above the one that was kept.
    at = np.searchsorted(z, z_mm, side="right") - 1
    area = np.bincount(at, area_mm2) / np.bincount(at)
    gap = np.diff(z)
    usual = float(np.median(gap))
    half = np.where(gap > max(GAP_MM, 3 * usual), usual, gap) / 2
    # At the ends a slice reaches as far outwards as inwards.
    above, below = np.append(half, half[-1]), np.insert(half, 0, half[0])
    return float((area * (above + below)).sum() / 1000)


def _classes(slices: _StudySlices, used_N: Bools, *, rule: StudyRule) -> dict[str, Any]:
    """Return the columns about the class of each study and the slices that decide."""
    studies, classes = len(slices.study_keys), slices.classes
    if not classes:
        return {"pred_class": [None] * studies, "deciding_slices": [[]] * studies}
    logits_NC = np.stack([slices.numbers(f"logit_{name}")[used_N] for name in classes], axis=1)
    p_NC = probabilities(logits_NC, activation=rule.activation, temperature=rule.temperature)
    study_N = slices.study_N[used_N]
    p_GC = rule.patients.probabilities(p_NC, study_N, groups=studies, classes=classes)
    answered_G = slices.per_study(used_N) > 0
    class_G = np.full(studies, -1)
    class_G[answered_G] = classes_of(p_GC[answered_G], classes=classes)
    ids = slices.table["slice_id"].filter(pa.array(used_N)).to_pylist()
    deciding: list[list[str]] = [[] for _ in range(studies)]
    for row in rule.patients.deciding(p_NC, study_N, groups=studies, classes=classes):
        deciding[study_N[row]].append(ids[row])
    return {
        **{f"p_{name}": pa.array(p_GC[:, i], from_pandas=True) for i, name in enumerate(classes)},
        "pred_class": [None if i < 0 else classes[i] for i in class_G],
        "deciding_slices": deciding,
    }
