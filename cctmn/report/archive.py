"""An output folder of `cctmn score`, counted for its report without holding its rows.

The predictions are read file by file. What stays in memory are counts, the keys of studies, series
and patients, and the files in which each study lies, so that its slices can be read again later.

Reads: OUT/manifest.json, OUT/predictions, OUT/studies.
"""

from __future__ import annotations

import datetime
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import schema, store, tables
from cctmn.classes import CONTROL
from cctmn.errors import DataError, state_of

Floats = NDArray[np.float64]

MANIFEST: Final = "manifest.json"
# Slices without a study that the report lists, those of most evidence first.
LISTED_SLICES: Final = 100
# Columns that describe the scanner; files of older versions have none of them.
SCANNER: Final = (
    "manufacturer",
    "scanner_model",
    "kernel",
    "slice_thickness_mm",
    "tube_voltage_kv",
)
LISTED_SCANNERS: Final = 30
_COUNTED: Final = (
    "slice_id",
    "study_key",
    "series_key",
    "patient_key",
    "pred_class",
    "num_lesions",
    "flags",
    "abstained",
    "error_code",
    "t_decode_ms",
    "t_score_ms",
    *SCANNER,
)


@dataclass(frozen=True)
class ScoredArchive:
    """What an output folder holds apart from its slices."""

    out: str  # URI
    manifest: Mapping[str, Any]
    written: str  # date and time at which the manifest was written; "" without a manifest
    files: tuple[str, ...]  # URIs of the predictions
    classes: tuple[str, ...]
    studies: tuple[Mapping[str, Any], ...] | None  # rows of OUT/studies; None without the table

    @property
    def has_control(self) -> bool:
        """Whether one of the classes is without disease."""
        return CONTROL in self.classes


@dataclass
class Census:
    """Counts of all rows, and what has to be remembered of them."""

    rows: int = 0
    states: Counter[str] = field(default_factory=Counter)  # rows that are ok, passed_over or error
    codes: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)  # of scored slices
    classes: Counter[str] = field(default_factory=Counter)  # of slices that do not abstain
    abstained: int = 0
    patients: set[str] = field(default_factory=set)
    series: set[str] = field(default_factory=set)
    slices_of: Counter[str] = field(default_factory=Counter)  # rows by study
    files_of: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    without_study: int = 0  # scored slices
    scanners: Counter[tuple[Any, ...]] = field(default_factory=Counter)  # rows by SCANNER
    scanner_columns: set[str] = field(default_factory=set)
    # sums over scored slices
    times_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    listed: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)  # a heap

    @property
    def slices_listed(self) -> list[dict[str, Any]]:
        """The slices without a study that have most evidence of disease, strongest first."""
        return [row for _, _, row in sorted(self.listed, key=lambda one: (-one[0], one[1]))]


def read(folder: str) -> ScoredArchive:
    """Read manifest and studies of an output folder. Raises DataError if it is not one."""
    out = store.to_uri(folder)
    files = tables.parquet_files(store.join(out, "predictions"))
    if not files:
        raise DataError(
            "neither predictions nor metrics.json in this folder; give a folder that `cctmn score` "
            "or `cctmn evaluate` has written",
            folder,
        )
    found = store.read_version(store.join(out, MANIFEST))
    try:
        manifest = json.loads(found.data) if found else {}
    except ValueError:
        raise DataError(f"{MANIFEST} is not JSON; run `cctmn score` again", folder) from None
    if not isinstance(manifest, dict):
        raise DataError(f"{MANIFEST} is not a table; run `cctmn score` again", folder)
    classes = schema.classes_of(tables.schema(files[0]))
    studies = [
        row
        for uri in tables.parquet_files(store.join(out, "studies"))
        if uri.endswith("/studies.parquet")
        for row in tables.read(uri, None).to_pylist()
    ]
    has_table = store.look_up(store.join(out, "studies", "studies.parquet")) is not None
    written = ""
    if found:
        at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=found.age_s)
        written = at.strftime("%Y-%m-%d %H:%M UTC")
    return ScoredArchive(
        out=out,
        manifest=manifest,
        written=written,
        files=tuple(files),
        classes=classes,
        studies=tuple(studies) if has_table else None,
    )


def count(archive: ScoredArchive) -> Census:
    """Read every file of the predictions once and count its rows."""
    census = Census()
    columns = [*_COUNTED, *(f"p_{name}" for name in archive.classes)]
    by_study = {row["study_key"] for row in archive.studies or ()}
    for number, uri in enumerate(archive.files):
        table = tables.read_present(uri, columns)
        _add(census, table, number=number, classes=archive.classes, studies=by_study)
    return census


def probability_of_disease(p_NC: Floats, classes: Sequence[str]) -> Floats:
    """Return the probability of any disease of each row of class probabilities; NaN for unknown.

    It is 1 minus the share of "control", for the sigmoid probabilities of a slice need not sum to
    1. Without a class "control" it is the largest probability.
    """
    if not classes:
        return np.full(len(p_NC), np.nan)
    if CONTROL not in classes:
        return np.asarray(p_NC.max(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - p_NC[:, classes.index(CONTROL)] / p_NC.sum(axis=1))


def probabilities_of(table: pa.Table, classes: Sequence[str]) -> Floats:
    """Return the columns p_* of a table, one row per slice; NaN for null."""
    names = [f"p_{name}" for name in classes]
    if not names or not set(names) <= set(table.column_names):
        return np.full((len(table), len(names)), np.nan)
    return np.stack([floats(table, name) for name in names], axis=1)


def floats(table: pa.Table, name: str) -> Floats:
    """Return a column as numbers, NaN for null and for a column that the table lacks."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(pc.cast(table[name], pa.float64()).to_numpy(), np.float64)


def values(table: pa.Table, name: str) -> list[Any]:
    """Return a column as a list, of None if the table lacks it."""
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def _add(
    census: Census, table: pa.Table, *, number: int, classes: Sequence[str], studies: set[str]
) -> None:
    codes = [code or "" for code in values(table, "error_code")]
    census.rows += len(table)
    census.codes.update(code for code in codes if code)
    census.states.update(map(state_of, codes))
    keys = values(table, "study_key")
    abstained = [bool(value) for value in values(table, "abstained")]
    census.abstained += sum(abstained)
    rows = zip(codes, abstained, values(table, "pred_class"), values(table, "flags"), strict=True)
    for code, abstains, name, flags in rows:
        if code:
            continue
        census.flags.update(flags or ())
        if name and not abstains:
            census.classes[name] += 1
    census.patients.update(key for key in values(table, "patient_key") if key)
    census.series.update(key for key in values(table, "series_key") if key)
    of_studies = Counter(key for key in keys if key)
    census.slices_of.update(of_studies)
    for key in of_studies:
        census.files_of[key].append(number)
    scored = np.array([not code for code in codes], np.bool_)
    for name in ("t_decode_ms", "t_score_ms"):
        census.times_ms[name] += float(np.nansum(floats(table, name)[scored]))
    present = [name for name in SCANNER if name in table.column_names]
    if present:
        census.scanner_columns.update(present)
        columns = (values(table, name) for name in SCANNER)
        census.scanners.update(
            row for row, ok in zip(zip(*columns, strict=True), scored, strict=True) if ok
        )
    _list_slices(census, table, scored=scored, keys=keys, classes=classes, studies=studies)


def _list_slices(
    census: Census,
    table: pa.Table,
    *,
    scored: NDArray[np.bool_],
    keys: Sequence[str | None],
    classes: Sequence[str],
    studies: set[str],
) -> None:
    """Keep the slices of most evidence among those of this file that are in no row of a study."""
    lone = scored & np.array([key not in studies for key in keys], np.bool_)
    census.without_study += int(lone.sum())
    if not lone.any():
        return
    part = table.filter(pa.array(lone))
    evidence = probability_of_disease(probabilities_of(part, classes), classes)
    # A detector has no classes: there the number of lesions decides.
    ranked = np.nan_to_num(evidence if classes else floats(part, "num_lesions"), nan=-1.0)
    best = np.argsort(-ranked, kind="stable")[:LISTED_SLICES]
    for index, row in zip(best, part.take(pa.array(best)).to_pylist(), strict=True):
        row["p_disease"] = float(evidence[index])
        entry = (float(ranked[index]), row["slice_id"], row)
        if len(census.listed) < LISTED_SLICES:
            heapq.heappush(census.listed, entry)
        else:
            heapq.heappushpop(census.listed, entry)
