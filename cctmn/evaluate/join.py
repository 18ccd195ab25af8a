"""Labels and predictions, joined by an explicit key, with every slice that fell out counted.

In: an output folder and labels. Out: aligned arrays, one line a label, and the accounting indexed
-> scored -> labelled -> evaluated. A label without a usable prediction stays in, marked, so that
the worst case can count it as wrong.

Shape suffixes: N labelled slices, C classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cctmn import store, tables
from cctmn.data.issues import few
from cctmn.data.labels import Labels, base_name, keys_of
from cctmn.errors import ConfigError, DataError
from cctmn.identity import RunIdentity
from cctmn.model.card import Card

_LOGIT: Final = re.compile(r"logit_(.+)")
# Columns of predictions that are read: what figures and cohorts need, not the lists of lesions.
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
# In place of an error code: no slice of that name, and one that is not scored yet.
NO_PREDICTION: Final = "no prediction"
PENDING: Final = "pending"


@dataclass(frozen=True, eq=False)
class Scored:
    """An output folder as evaluation reads it."""

    out: str  # URI
    table: pa.Table  # FLAT and the logits, a row a prediction; `file` numbers its file
    files: list[str]
    classes: tuple[str, ...]
    manifest: dict[str, Any]  # {} of a job that did not finish
    indexed: int  # slices in the inventory, or predictions where there is none
    names: pa.Table | None  # slice_id, uri, member, frame; None without OUT/private
    has_masks: bool  # lesion_masks is there

    @property
    def model(self) -> dict[str, Any]:
        """What the manifest says of the model; folders of older versions say less."""
        scored_by = RunIdentity.read(self.manifest).values.get("model", {})
        described: dict[str, Any] = self.manifest.get("model") or {}
        known = {k: scored_by[k] for k in ("activation",) if k in scored_by} | described
        return known | {"model_id": self.model_id}

    @property
    def model_id(self) -> str:
        """Of the model that scored every row."""
        return str(self.table["model_id"][0])

    def accounting(self) -> dict[str, int]:
        """Slices indexed, scored, ended as error rows, and still pending."""
        errors = int(pc.sum(pc.not_equal(self.table["error_code"], "")).as_py() or 0)
        rows = len(self.table)
        return {
            "indexed": self.indexed,
            "scored": rows - errors,
            "errors": errors,
            "pending": self.indexed - rows,
        }

    def check_model(self, card: Card, *, where: str) -> None:
        """Raise ConfigError if the rows are not of the model that the card is of."""
        if card.model_id != self.model_id:
            raise ConfigError(
                f"{self.out}: its predictions are of model {self.model_id}, {where} is "
                f"{card.model_id}; give the model that scored them"
            )


@dataclass(frozen=True, eq=False)
class Joined:
    """Labelled slices with what was said of them, in the order of the labels."""

    labels: Labels
    scored: Scored
    row_N: NDArray[np.int64]  # of the predictions' table; -1 without one
    code_N: list[str]  # "" = scored, an error code, PENDING or NO_PREDICTION
    scored_N: NDArray[np.bool_]
    unlabelled: list[str]  # slice_ids of predictions without a label
    key: str

    def logits(self) -> NDArray[np.float64]:
        """Of the scored ones: M x C."""
        rows = pa.array(self.row_N[self.scored_N])
        columns = [self.scored.table[f"logit_{name}"].take(rows) for name in self.scored.classes]
        return np.stack([c.to_numpy().astype(np.float64) for c in columns], axis=1)

    def patients(self) -> list[str]:
        """Of every labelled slice: of the labels, else the header's pseudonym, else ""."""
        if any(self.labels.patient):
            return self.labels.patient
        keys = self.scored.table["patient_key"].to_pylist()
        return [keys[row] or "" if row >= 0 else "" for row in self.row_N]

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the labels, or of the predictions (null without one), for cohorts."""
        if name in self.labels.table.column_names:
            return self.labels.table[name]
        if name in self.scored.table.column_names:
            rows = pa.array(self.row_N, mask=self.row_N < 0)
            return self.scored.table[name].take(rows)
        known = {*self.labels.table.column_names, *self.scored.table.column_names} - {"file"}
        raise ConfigError(f"--by {name}: no such column; there are {', '.join(sorted(known))}")

    def accounting(self) -> dict[str, Any]:
        """Indexed -> scored -> labelled -> evaluated, and what fell out at each step."""
        codes = Counter(code for code in self.code_N if code)
        table = self.scored.table
        abstained = table["abstained"].take(pa.array(self.row_N[self.scored_N]))
        return self.scored.accounting() | {
            "labelled": len(self.code_N),
            "evaluated": int(self.scored_N.sum()),
            "labels_without_prediction": codes.pop(NO_PREDICTION, 0),
            "predictions_without_label": len(self.unlabelled),
            "labelled_errors": dict(sorted(codes.items())),
            "abstained": int(pc.sum(abstained).as_py() or 0),
        }


def read_scored(out: str) -> Scored:
    """Predictions and inventory of an output folder; a detector's have no classes.

    Raises DataError or ConfigError: none there, or of more than one model.
    """
    uri = store.to_uri(out)
    files = tables.parquet_files(store.join(uri, "predictions"))
    if not files:
        raise DataError(f"{out}: holds no predictions; score into it first")
    filesystem, path = store.arrow_filesystem(files[0])
    names = pq.read_schema(path, filesystem=filesystem).names
    if missing := sorted(set(FLAT) - set(names)):
        raise DataError(f"{out}: its predictions have no column {missing[0]}; score into a new OUT")
    classes = tuple(found[1] for name in names if (found := _LOGIT.fullmatch(name)))
    columns = [*FLAT, *(f"logit_{name}" for name in classes)]
    parts = [tables.read(file, columns) for file in files]
    number = [np.full(len(part), i, np.int32) for i, part in enumerate(parts)]
    table = pa.concat_tables(parts).append_column("file", pa.array(np.concatenate(number)))
    models = pc.unique(table["model_id"]).to_pylist()
    if len(models) > 1:
        raise ConfigError(f"{out}: predictions of several models ({few(models)}); use one OUT each")
    manifest = json.loads(store.read_optional(store.join(uri, "manifest.json")) or b"{}")
    listed = [
        part.select(["slice_id", "uri", "member", "frame"])
        for part in tables.inventory(store.join(uri, "private", "inventory"))
    ]
    inventory = pa.concat_tables(listed) if listed else None
    indexed = len(table) if inventory is None else len(inventory)
    has_masks = "lesion_masks" in names
    return Scored(uri, table, files, classes, manifest, indexed, inventory, has_masks)


def join(labels: Labels, scored: Scored, *, key: str = "name", root: str | None = None) -> Joined:
    """Find the prediction of each label by file name, uri (below `root`, if relative) or slice_id.

    Raises DataError if a name means two slices, or nothing is found.
    """
    wanted = keys_of(labels.table, key=key, place=labels.place)
    if key == "uri":
        base = root or store.parent(labels.place)
        wanted = [_absolute(uri, base) for uri in wanted]
    has_frame = "frame" in labels.table.column_names and key != "slice_id"
    frames = labels.table["frame"].to_pylist() if has_frame else None
    ids = _slice_ids(wanted, scored, key=key, frames=frames)
    rows = {slice_id: i for i, slice_id in enumerate(scored.table["slice_id"].to_pylist())}
    row_N = np.array([rows.get(slice_id, -1) for slice_id in ids], np.int64)
    if not (row_N >= 0).any():
        raise DataError(
            f"{labels.place}: no label finds a prediction of {scored.out} by {key} (the first is "
            f"{wanted[0]}); choose another --key, or another OUT"
        )
    codes = scored.table["error_code"].to_pylist()
    code_N = [
        codes[row] if row >= 0 else PENDING if key != "slice_id" and slice_id else NO_PREDICTION
        for slice_id, row in zip(ids, row_N, strict=True)
    ]
    known = set(ids)
    unlabelled = [slice_id for slice_id in rows if slice_id not in known]
    scored_N = np.array([not code for code in code_N], np.bool_)
    return Joined(labels, scored, row_N, code_N, scored_N, unlabelled, key)


def _slice_ids(
    wanted: list[str], scored: Scored, *, key: str, frames: list[Any] | None
) -> list[str]:
    """The slice_id of each key, "" where the inventory has none."""
    if key == "slice_id":
        return wanted
    if scored.names is None:
        raise DataError(
            f"{scored.out}: OUT/private/inventory is not there, which knows the names; run where "
            "it is, or join by --key slice_id"
        )
    columns = [scored.names[name].to_pylist() for name in ("slice_id", "uri", "member", "frame")]
    known: dict[Any, str] = {}
    doubled: set[str] = set()
    asked = set(wanted)
    for slice_id, uri, member, frame in zip(*columns, strict=True):
        name = f"{uri}::{member}" if member else uri
        if key == "name":
            name = base_name(member or store.display(uri))
        if name not in asked:
            continue
        place = name if frames is None else (name, str(frame))
        if place in known:
            doubled.add(name)
        known[place] = slice_id
    if doubled:
        way = "a column frame" if key == "uri" else "--key uri, or a column frame"
        raise DataError(
            f"{len(doubled)} labels mean more than one slice each ({few(sorted(doubled))}); tell "
            f"them apart by {way}"
        )
    if frames is None:
        return [known.get(name, "") for name in wanted]
    return [known.get((n, str(f)), "") for n, f in zip(wanted, frames, strict=True)]


def _absolute(uri: str, base: str) -> str:
    """uri::member with the first part absolute, as the inventory has it."""
    place, mark, member = uri.partition("::")
    return f"{store.below(base, place)}{mark}{member}"
