"""Labels and predictions, joined by an explicit key, with a count of every slice that drops out.

A label without a usable prediction stays in the result and is marked, so that the worst case can
count it as wrong.

Reads: an output folder and labels.
Writes: aligned arrays with one entry per label, and the accounting from indexed slices to scored,
labelled and evaluated ones.

Shape suffixes: N labelled slices, C classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.data.issues import first_few
from cctmn.data.labels import Labels, base_name, keys_of
from cctmn.errors import ConfigError, DataError, state_of
from cctmn.evaluate import labels_by_patient, near_names
from cctmn.metrics import bootstrap
from cctmn.metrics.intervals import ClassifiedSample
from cctmn.model.card import Card
from cctmn.model.probabilities import probabilities
from cctmn.numerics import Computed
from cctmn.schema import classes_of

# Columns of the predictions that metrics and cohorts need. The lists of lesions are not read.
FLAT: Final = (
    "slice_id",
    "study_key",
    "series_key",
    "patient_key",
    "frame",
    "slice_z_mm",
    "rows",
    "cols",
    "spacing_row_mm",
    "spacing_col_mm",
    "num_lesions",
    "max_lesion_score",
    "abstained",
    "error_code",
    "model_id",
)
# Stand in place of an error code: no slice has that name, and the slice is not scored yet.
NO_PREDICTION: Final = "no prediction"
PENDING: Final = "pending"


@dataclass(frozen=True, eq=False)
class Scored:
    """The predictions and the inventory of an output folder."""

    out: str  # URI
    table: pa.Table  # FLAT and the logits, one row per prediction; `file` is the index of its file
    files: list[str]
    classes: tuple[str, ...]
    manifest: dict[str, Any]  # {} for a job that did not finish
    indexed: int  # slices in the inventory, or predictions where there is none
    names: pa.Table | None  # slice_id, uri, member, frame; None without OUT/private
    has_masks: bool  # whether there is a column lesion_masks
    computed: Computed  # device and precision

    @property
    def model_id(self) -> str:
        """The id of the model that scored every row."""
        return str(self.table["model_id"][0])

    def accounting(self) -> dict[str, int]:
        """Count the slices that are indexed, scored, passed over, errors, and still pending."""
        states: Counter[str] = Counter()
        for count in self.table["error_code"].value_counts().to_pylist():
            states[state_of(count["values"])] += count["counts"]
        rows = len(self.table)
        return {
            "indexed": self.indexed,
            "scored": states["ok"],
            "passed_over": states["passed_over"],
            "errors": states["error"],
            "pending": self.indexed - rows,
        }

    def check_model(self, card: Card, *, where: str) -> None:
        """Raise ConfigError if another model than the card's made the predictions."""
        if card.model_id != self.model_id:
            raise ConfigError(
                f"its predictions are of model {self.model_id}, the given one is {card.model_id}; "
                "give the model that scored them",
                self.out,
                where,
            )


@dataclass(frozen=True, eq=False)
class Joined:
    """Labelled slices and their predictions, in the order of the labels."""

    labels: Labels
    scored: Scored
    row_N: NDArray[np.int64]  # row of the table of predictions, -1 if there is none
    code_N: list[str]  # "" = scored, an error code, PENDING or NO_PREDICTION
    scored_N: NDArray[np.bool_]
    unlabelled: list[str]  # slice_ids of predictions without a label
    key: str
    notes: list[str] = field(default_factory=list)  # labels joined in spite of their spelling

    def logits(self) -> NDArray[np.float64]:
        """Return the logits of the scored slices, M x C."""
        rows = pa.array(self.row_N[self.scored_N])
        columns = [self.scored.table[f"logit_{name}"].take(rows) for name in self.scored.classes]
        return np.stack([c.to_numpy().astype(np.float64) for c in columns], axis=1)

    def abstained(self) -> NDArray[np.bool_]:
        """Return whether each scored slice is outside what the model is made for, M."""
        column = self.scored.table["abstained"].take(pa.array(self.row_N[self.scored_N]))
        return np.asarray(column.fill_null(False).to_numpy(), np.bool_)

    @cached_property
    def patient_ids(self) -> list[str]:
        """The patient id of each labelled slice: from the labels, else the keyed id of the header.

        An unknown patient is "".
        """
        if any(self.labels.patient):
            return self.labels.patient
        keys = self.scored.table["patient_key"].to_pylist()
        return [keys[row] or "" if row >= 0 else "" for row in self.row_N]

    def sample(
        self, *, activation: str, temperature: float, kept_N: NDArray[np.bool_] | None = None
    ) -> ClassifiedSample:
        """Return the scored slices with their probabilities, and the labelled ones without scores.

        With `kept_N` the sample holds only the scored slices among those, and none without scores.
        """
        group_N, groups = bootstrap.group_patients(self.patient_ids)
        truth_N, scored_N = self.labels.truth_N, self.scored_N
        p_NC = probabilities(self.logits(), activation=activation, temperature=temperature)
        unscored_N = ~scored_N
        if kept_N is not None:
            p_NC, scored_N = p_NC[kept_N[scored_N]], scored_N & kept_N
            unscored_N = np.zeros_like(scored_N)
        return ClassifiedSample(
            classes=self.scored.classes,
            truth_N=truth_N[scored_N],
            score_NC=p_NC,
            group_N=group_N[scored_N],
            groups=groups,
            unscored_truth=truth_N[unscored_N],
            unscored_group=group_N[unscored_N],
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the labels, or of the predictions (null for a slice without one)."""
        if name in self.labels.table.column_names:
            return self.labels.table[name]
        if name in self.scored.table.column_names:
            rows = pa.array(self.row_N, mask=self.row_N < 0)
            return self.scored.table[name].take(rows)
        known = {*self.labels.table.column_names, *self.scored.table.column_names} - {"file"}
        raise ConfigError(f"--by {name}: no such column; there are {', '.join(sorted(known))}")

    def accounting(self) -> dict[str, Any]:
        """Count the slices from indexed to evaluated, and those that drop out at each step."""
        codes = Counter(code for code in self.code_N if code)
        abstained = self.abstained()
        return self.scored.accounting() | {
            "labelled": len(self.code_N),
            "evaluated": int(self.scored_N.sum()),
            "labels_without_prediction": codes.pop(NO_PREDICTION, 0),
            "predictions_without_label": len(self.unlabelled),
            "labelled_errors": dict(sorted(codes.items())),
            "abstained": int(abstained.sum()),
        }


def read_scored(out: str) -> Scored:
    """Read the predictions and the inventory of an output folder.

    The predictions of a detector have no classes. Raises DataError if there are no predictions, and
    ConfigError if they are of several models.
    """
    uri = store.to_uri(out)
    files = tables.parquet_files(store.join(uri, "predictions"))
    if not files:
        raise DataError("holds no predictions; score into it first", out)
    file_schema = tables.schema(files[0])
    names = file_schema.names
    if missing := sorted(set(FLAT) - set(names)):
        raise DataError(f"its predictions have no column {missing[0]}; score into a new OUT", out)
    classes = classes_of(file_schema)
    columns = [*FLAT, *(f"logit_{name}" for name in classes)]
    parts = [tables.read(file, columns) for file in files]
    number = [np.full(len(part), i, np.int32) for i, part in enumerate(parts)]
    table = pa.concat_tables(parts).append_column("file", pa.array(np.concatenate(number)))
    models = pc.unique(table["model_id"]).to_pylist()
    if len(models) > 1:
        raise ConfigError(
            f"predictions of several models ({first_few(models)}); use one OUT each", out
        )
    manifest = json.loads(store.read_optional(store.join(uri, "manifest.json")) or b"{}")
    listed = [
        part.select(["slice_id", "uri", "member", "frame"])
        for part in tables.inventory(store.join(uri, "private", "inventory"))
    ]
    inventory = pa.concat_tables(listed) if listed else None
    indexed = len(table) if inventory is None else len(inventory)
    has_masks = "lesion_masks" in names
    computed = Computed.of_files((part.schema.metadata, len(part)) for part in parts)
    return Scored(uri, table, files, classes, manifest, indexed, inventory, has_masks, computed)


def join(labels: Labels, scored: Scored, *, key: str = "name", root: str | None = None) -> Joined:
    """Find the prediction of each label by file name, URI (relative ones below `root`) or slice_id.

    By "patient", a label holds for every slice of the patient. A name that differs by spelling
    alone counts too, if it is unique. Raises DataError if a name means two slices, no label has a
    prediction, or a labelled slice has a score that is not finite.
    """
    if key == "patient":
        of_predictions = (scored.table[name] for name in ("slice_id", "patient_key"))
        slice_ids, patient_keys = (column.combine_chunks() for column in of_predictions)
        labels = labels_by_patient.of_slices(
            labels, out=scored.out, slice_ids=slice_ids, patient_keys=patient_keys
        )
        return _joined(labels, scored, labels.table["slice_id"].to_pylist(), key=key)
    wanted = keys_of(labels.table, key=key, place=labels.place)
    if key == "uri":
        base = root or store.parent(labels.place)
        wanted = [_absolute(uri, base) for uri in wanted]
    has_frame = "frame" in labels.table.column_names and key != "slice_id"
    frames = labels.table["frame"].to_pylist() if has_frame else None
    ids, notes = _slice_ids(wanted, scored, key=key, frames=frames)
    hint = ""
    if not any(ids) and key != "slice_id":
        hint = near_names.hint(wanted, _names(scored, key=key), key=key)
    return _joined(labels, scored, ids, key=key, notes=notes, hint=hint)


def _joined(
    labels: Labels,
    scored: Scored,
    ids: list[str],
    *,
    key: str,
    notes: Sequence[str] = (),
    hint: str = "",
) -> Joined:
    rows = {slice_id: i for i, slice_id in enumerate(scored.table["slice_id"].to_pylist())}
    row_N = np.array([rows.get(slice_id, -1) for slice_id in ids], np.int64)
    if not (row_N >= 0).any():
        raise DataError(
            f"no label has a prediction by {key}"
            + (f": {hint}" if hint else "; choose another --key, or another OUT"),
            labels.place,
            f"the first is {labels.table[_column(labels, key)][0]}, OUT is {scored.out}",
        )
    codes = scored.table["error_code"].to_pylist()
    code_N = [
        codes[row]
        if row >= 0
        else PENDING
        if key in ("name", "uri") and slice_id
        else NO_PREDICTION
        for slice_id, row in zip(ids, row_N, strict=True)
    ]
    labelled = set(ids)
    unlabelled = [slice_id for slice_id in rows if slice_id not in labelled]
    scored_N = np.array([not code for code in code_N], np.bool_)
    joined = Joined(labels, scored, row_N, code_N, scored_N, unlabelled, key, list(notes))
    _check_finite(joined)
    return joined


def _check_finite(joined: Joined) -> None:
    """Raise DataError if a labelled slice has a logit that is not finite, and so no class."""
    check_finite(
        joined.scored,
        joined.row_N[joined.scored_N],
        joined.logits(),
        remedy=", or leave them out of the labels",
    )


def check_finite(
    scored: Scored, row_M: NDArray[np.int64], logits_MC: NDArray[np.float64], *, remedy: str = ""
) -> None:
    """Raise DataError if a row of the predictions has a logit that is not finite."""
    bad_M = ~np.isfinite(logits_MC).all(axis=1)
    if bad_M.any():
        ids = scored.table["slice_id"].take(pa.array(row_M[bad_M])).to_pylist()
        raise DataError(
            f"labelled slices or patients with a score that is not a number: {first_few(ids)}; "
            f"score them again into a new OUT{remedy}",
            scored.out,
        )


def _column(labels: Labels, key: str) -> str:
    """Return the column of the labels that names a slice, or its patient."""
    columns = labels.table.column_names
    return key if key in columns else "uri"


def _slice_ids(
    wanted: list[str], scored: Scored, *, key: str, frames: list[Any] | None
) -> tuple[list[str], list[str]]:
    """Return the slice_id of each key, "" for a key that the inventory does not have, and notes."""
    if key == "slice_id":
        return wanted, []
    if scored.names is None:
        raise DataError(
            "OUT/private/inventory, which holds the names, is missing; run where it is, or "
            "join by --key slice_id",
            scored.out,
        )
    names = _names(scored, key=key)
    asked = set(wanted)
    there = set(names)
    spelled = near_names.same_slices(asked - there, there - asked)
    notes = [near_names.joined_note(len(spelled))] if spelled else []
    wanted = [spelled.get(name, name) for name in wanted]
    asked |= set(spelled.values())
    columns = [scored.names[name].to_pylist() for name in ("slice_id", "frame")]
    known: dict[Any, str] = {}
    doubled: set[str] = set()
    for name, slice_id, frame in zip(names, *columns, strict=True):
        if name not in asked:
            continue
        entry = name if frames is None else (name, str(frame))
        if entry in known:
            doubled.add(name)
        known[entry] = slice_id
    if doubled:
        remedy = "add a column frame" if key == "uri" else "use --key uri, or add a column frame"
        raise DataError(
            f"{len(doubled)} labels match more than one slice each; {remedy}",
            names=first_few(sorted(doubled)),
        )
    if frames is None:
        return [known.get(name, "") for name in wanted], notes
    return [known.get((n, str(f)), "") for n, f in zip(wanted, frames, strict=True)], notes


def _names(scored: Scored, *, key: str) -> list[str]:
    """Return the file name or the URI of each slice of the inventory."""
    assert scored.names is not None
    columns = [scored.names[name].to_pylist() for name in ("uri", "member")]
    if key == "name":
        return [
            base_name(member or store.display(uri)) for uri, member in zip(*columns, strict=True)
        ]
    return [f"{uri}::{member}" if member else uri for uri, member in zip(*columns, strict=True)]


def _absolute(uri: str, base: str) -> str:
    """Return uri::member with an absolute URI, as the inventory has it."""
    place, mark, member = uri.partition("::")
    return f"{store.below(base, place)}{mark}{member}"
