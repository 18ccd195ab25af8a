"""The files of OUT/predictions as one record of what is done: each is read once in a run.

A whole Parquet file is the record of a commit. The ids are in the same file as their results, so
there is no second record that could disagree. A file that is cut or changed counts as not written.
The memory is 16 bytes per slice, and a few counters per file.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cctmn import id_set, store, tables
from cctmn.errors import ResumeError
from cctmn.id_set import Ids, IdSet
from cctmn.numerics import device_name_of_file
from cctmn.score import commit, compact

_COLUMNS: Final = ["slice_id", "error_code", "flags", "abstained", "pred_class"]


@dataclass
class Tally:
    """Numbers of rows, of one file or of all files together."""

    codes: Counter[str] = field(default_factory=Counter)  # by error code, "" for scored ones
    flags: Counter[str] = field(default_factory=Counter)  # scored rows by flag
    classes: Counter[str] = field(default_factory=Counter)  # scored rows that do not abstain
    devices: Counter[str] = field(default_factory=Counter)  # scored rows by name of the device
    abstained: int = 0

    @classmethod
    def of(cls, table: pa.Table) -> Tally:
        """Count the rows of a file's table of _COLUMNS, with the metadata of the file."""
        scored = table.filter(pc.equal(table["error_code"], ""))
        counted = scored.filter(pc.invert(scored["abstained"].fill_null(False)))
        device = device_name_of_file(table.schema.metadata)
        return cls(
            codes=_counts(table["error_code"]),
            flags=_counts(pc.list_flatten(scored["flags"])),
            classes=_counts(counted["pred_class"].drop_null()),
            devices=Counter({device: len(scored)} if len(scored) else {}),
            abstained=len(scored) - len(counted),
        )

    def add(self, other: Tally) -> None:
        """Add the numbers of another file."""
        for mine, its in (
            (self.codes, other.codes),
            (self.flags, other.flags),
            (self.classes, other.classes),
            (self.devices, other.devices),
        ):
            mine.update(its)
        self.abstained += other.abstained


def _counts(column: pa.Array | pa.ChunkedArray) -> Counter[str]:
    counted = pc.value_counts(column)
    pairs = zip(*(part.to_pylist() for part in counted.flatten()), strict=True)
    return Counter(dict(pairs))


@dataclass(frozen=True, eq=False)
class _File:
    ids: Ids
    tally: Tally


class PredictionFiles:
    """What the files of a folder of predictions, a URI, hold.

    Call `refresh` first, and again after something else has written there. Without the stamp of a
    run the folder is only read: nothing is checked or removed.
    """

    def __init__(self, folder: str, *, stamp: commit.Stamp | None) -> None:
        self.folder, self.stamp = folder, stamp
        self._files: dict[str, _File] = {}  # by URI, sorted
        self._finished: IdSet | None = None

    def refresh(self) -> int:
        """Read the files that are new and remove those that are cut or changed.

        Returns the number of removed files, whose slices are pending again. Raises ResumeError for
        a file of another run, and for one on S3 that this job cannot have written.
        """
        removed = 0
        if self.stamp is not None:
            removed += commit.remove_leftovers(self.folder)
            if not self._files:  # at the first time: later nobody else merges files
                removed += compact.finish_deleting(self.folder)
        listed = tables.sizes(self.folder)
        read: dict[str, _File] = {uri: self._files[uri] for uri in listed if uri in self._files}
        new = {uri: size for uri, size in listed.items() if uri not in read}
        for uri, file in tables.map_files(functools.partial(_read, stamp=self.stamp), new):
            if file is not None:
                read[uri] = file
            elif self.stamp is not None:
                store.delete(uri)
                removed += 1
        if read.keys() != self._files.keys():
            self._files = dict(sorted(read.items()))
            self._finished = None
        return removed

    @property
    def finished(self) -> IdSet:
        """The ids of all slices with a row, in the order of the files."""
        if self._finished is None:
            self._finished = IdSet(id_set.concatenated([file.ids for file in self._files.values()]))
        return self._finished

    def tally(self) -> Tally:
        """Return the numbers of rows of all files together."""
        total = Tally()
        for file in self._files.values():
            total.add(file.tally)
        return total

    def withdraw(self, codes: Collection[str] | None) -> int:
        """Remove the rows with these codes (None: all), so that their slices are pending again.

        Returns their number.
        """
        withdrawn = 0
        for uri, file in self._files.items():
            of_file = set(file.tally.codes) - {""}
            if gone := of_file if codes is None else of_file.intersection(codes):
                table = tables.read(uri, None)
                is_gone = pc.is_in(table["error_code"], value_set=pa.array(sorted(gone)))
                withdrawn += _rewrite(uri, table, keep=pc.invert(is_gone))
        if withdrawn:
            self.refresh()
        return withdrawn

    def remove_doubles(self) -> int:
        """Keep the first row of each slice_id; return the number of rows removed.

        Only two writers at once can double a row. Rows are deterministic, so either is right.
        """
        places = self.finished.repetitions()
        if not len(places):
            return 0
        ends = np.cumsum([len(file.ids) for file in self._files.values()])
        starts = np.concatenate([[0], ends[:-1]])
        removed = 0
        of_file = np.searchsorted(ends, places, side="right")
        uris = list(self._files)
        for number in np.unique(of_file):
            table = tables.read(uris[number], None)
            keep = np.ones(len(table), np.bool_)
            keep[places[of_file == number] - starts[number]] = False
            removed += _rewrite(uris[number], table, keep=pa.array(keep))
        self.refresh()
        return removed


def _read(uri: str, *, stamp: commit.Stamp | None) -> _File | None:
    """Read a file once; return None if it is cut or changed."""
    opened = commit.open_whole(uri, stamp=stamp)
    if opened is None:
        if stamp and store.traits(uri).whole_writes and not commit.is_named_by_hash(uri):
            raise ResumeError("not a Parquet file, and not of this job; remove it", uri)
        return None
    table = tables.read_opened(opened, _COLUMNS, uri=uri)
    try:
        return _File(id_set.of_hex(table["slice_id"]), Tally.of(table))
    except ValueError:
        raise ResumeError(tables.OTHER_FORM, uri) from None


def _rewrite(uri: str, table: pa.Table, *, keep: pa.Array | pa.ChunkedArray) -> int:
    kept = table.filter(keep)
    removed = len(table) - len(kept)
    if removed:
        commit.rewrite(kept, uri)
    return removed
