"""Data leakage: the same patient, scan, file or picture in two sets.

A test result on patients of the training set says little, and the name of a set does not show it.

Reads: one table of labels per set and, if hashes are wanted, the files.
Writes: how many patients, scans, slices, files and pictures every two sets share, and their names,
which must stay private.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from cctmn import store
from cctmn.data.labels import base_name
from cctmn.data.patients import folded, nfc
from cctmn.data.slice_names import parse_name
from cctmn.errors import DataError, ObjectError, SliceError
from cctmn.read.decode import open_image

# Files read at the same time. Latency limits the rate, as it does when indexing.
THREADS: Final = 16
# A UID of DICOM has more dots than any number.
UID_DOTS: Final = 3
KINDS: Final = ("patients", "scans", "slices", "files", "pixels")


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """The members of a set; `files` and `pixels` are None unless hashes were asked for."""

    name: str
    lines: int
    unknown: int  # slices whose patient is unknown
    patients: Mapping[str, str]  # ids as written, by their spelling without case
    scans: frozenset[str]
    slices: Mapping[str, frozenset[str]]  # the patients of each slice, "" if unknown
    files: frozenset[str] | None = None
    pixels: frozenset[str] | None = None
    unreadable: tuple[str, ...] = ()

    def of(self, kind: str) -> Collection[str] | None:
        """Return the members of a kind of KINDS."""
        members: Collection[str] | None = getattr(self, kind)
        return members


@dataclass(frozen=True, eq=False)
class Overlap:
    """The members that two sets share, by kind; None for a kind that was not compared."""

    a: str
    b: str
    shared: dict[str, list[str] | None] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Return the number of shared members of each kind, without their names."""
        numbers = {k: None if names is None else len(names) for k, names in self.shared.items()}
        return {"a": self.a, "b": self.b, **numbers}


def read_set(table: pa.Table, *, name: str, root: str = "", hashes: bool = False) -> LabelledSet:
    """Read a set from its table of labels, with hashes of files and of decoded pixels if wanted.

    `root` is the base folder or prefix for relative URIs. Raises DataError for files that cannot be
    hashed because the table does not say where they are.
    """
    patients = _column(table, "patient")
    scans = _column(table, "scan")
    hashed: dict[str, Any] = {}
    if hashes:
        hashed = _hashes(_uris(table, name=name, root=root))
    return LabelledSet(
        name=name,
        lines=len(table),
        unknown=patients.count(""),
        patients={folded(patient): patient for patient in patients if patient},
        # The number of a scan may count within its patient; a UID is unique without it.
        scans=frozenset(
            f"{folded(p)}/{s}"
            for p, s in zip(patients, scans, strict=True)
            if s and (p or s.count(".") > UID_DOTS)
        ),
        slices=_slices(table, patients),
        **hashed,
    )


def compare(sets: Sequence[LabelledSet]) -> list[Overlap]:
    """Compare every two of the sets."""
    overlaps = []
    for a, b in itertools.combinations(sets, 2):
        shared: dict[str, list[str] | None] = {}
        for kind in KINDS:
            one, other = a.of(kind), b.of(kind)
            if one is None or other is None:
                shared[kind] = None
            elif kind == "patients":
                shared[kind] = sorted(a.patients[p] for p in a.patients.keys() & b.patients.keys())
            elif kind == "slices":
                shared[kind] = _shared_slices(a.slices, b.slices)
            else:
                shared[kind] = sorted(set(one) & set(other))
        overlaps.append(Overlap(a.name, b.name, shared))
    return overlaps


def summary(sets: Sequence[LabelledSet], overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Return the section `audit` of metrics.json: counts, and warnings.

    There is a warning for each overlap, and one for slices that could not be checked.
    """
    warnings = [
        f"{one.name}: the patient of {one.unknown:,} of {one.lines:,} slices is unknown, so they "
        "could not be checked for shared patients."
        for one in sets
        if one.unknown
    ]
    for (a, b), overlap in zip(itertools.combinations(sets, 2), overlaps, strict=True):
        kinds = {k: names for k, names in overlap.shared.items() if names}
        if kinds:
            counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
            num_shared = len(overlap.shared["patients"] or ())
            of_a, of_b = len(a.patients), len(b.patients)
            warnings.append(
                f"{overlap.a} and {overlap.b} share {counts}: {num_shared} of the {of_a} patients "
                f"of the first and of the {of_b} of the second. A result on one is not independent "
                "of training on the other."
            )
    return {
        "sets": [
            {
                "name": s.name,
                "slices": s.lines,
                "patients": len(s.patients),
                "unknown_patients": s.unknown,
            }
            | ({"unreadable": len(s.unreadable)} if s.files is not None else {})
            for s in sets
        ],
        "pairs": [overlap.counts() for overlap in overlaps],
        "warnings": warnings,
    }


def named(overlaps: Sequence[Overlap]) -> dict[str, list[str]]:
    """Return the columns a, b, kind, name of all shared members; they identify patients."""
    rows = [
        (overlap.a, overlap.b, kind, name)
        for overlap in overlaps
        for kind, names in overlap.shared.items()
        for name in names or ()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 4
    return {n: list(c) for n, c in zip(("a", "b", "kind", "name"), columns, strict=True)}


def _slices(table: pa.Table, patients: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the patients of each slice by its key in public data sets, path or slice_id."""
    column = next(c for c in ("uri", "name", "slice_id") if c in table.column_names)
    slices: defaultdict[str, set[str]] = defaultdict(set)
    for text, patient in zip(table[column].to_pylist(), patients, strict=True):
        named = parse_name(base_name(text))
        if named:
            # The name of a public data set alone says which slice it is.
            slices[named.key].add("")
        else:
            slices[nfc(text).removeprefix("./")].add(folded(patient))
    return {name: frozenset(of) for name, of in slices.items()}


def _shared_slices(
    one: Mapping[str, frozenset[str]], other: Mapping[str, frozenset[str]]
) -> list[str]:
    """Return the slices of both sets, sorted.

    Every scanner writes IM0001.dcm, so slices of known and different patients are not the same,
    and a path with folders is not the same as another one. A name without folders may be any of
    the paths that end with it.
    """
    shared = []
    for paths, others in ((one, other), (other, one)):
        by_base = defaultdict(list)
        for path, patients in others.items():
            by_base[base_name(path)].append(patients)
        for path, patients in paths.items():
            same = [others[path]] if path in others else []
            if not same and path == base_name(path):
                same = by_base.get(path, [])
            if any("" in patients | of or patients & of for of in same):
                shared.append(path)
    return sorted(set(shared))


def _column(table: pa.Table, name: str) -> list[str]:
    return table[name].to_pylist() if name in table.column_names else [""] * len(table)


def _uris(table: pa.Table, *, name: str, root: str) -> list[str]:
    if "uri" not in table.column_names:
        raise DataError("no column uri, so its files cannot be hashed; leave out --hash", name)
    uris = []
    for uri in table["uri"].to_pylist():
        if "::" in uri:
            raise DataError(
                "a slice is in an archive; only loose files can be hashed, leave out --hash",
                name,
                uri,
            )
        uris.append(store.below(root, uri))
    return uris


def _hashes(uris: list[str]) -> dict[str, Any]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as pool:
        hashes = list(pool.map(_hash, uris))
    return {
        "files": frozenset(file for file, _ in hashes if file),
        "pixels": frozenset(pixels for _, pixels in hashes if pixels),
        "unreadable": tuple(u for u, (_, pixels) in zip(uris, hashes, strict=True) if not pixels),
    }


def _hash(uri: str) -> tuple[str, str]:
    """Return the SHA-256 of the file, and of its pixels, shape and unit; "" if unreadable."""
    try:
        data = store.read_all(uri)
    except ObjectError:
        return "", ""
    file = hashlib.sha256(data).hexdigest()
    try:
        slice_ = open_image(data).frame(0)
    except SliceError:
        return file, ""
    pixels = hashlib.sha256(f"{slice_.unit} {slice_.pixels.shape}".encode())
    pixels.update(slice_.pixels.tobytes())
    return file, pixels.hexdigest()
