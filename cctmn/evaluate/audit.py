"""Leakage: the same patient, scan, file or picture in two sets.

In: tables of labels, one a set, and where they are wanted the hashes of their files. Out: how many
of each two sets share, with their names, which stay on this machine. A test result on patients that
were trained on says little, and a set's name does not tell.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from cctmn import store
from cctmn.data.labels import identities
from cctmn.errors import DataError, ObjectError, SliceError
from cctmn.read.decode import open_image

THREADS: Final = 16  # reads in flight: latency bounds them, as it does an index
KINDS: Final = ("patients", "scans", "slices", "files", "pixels")


@dataclass(frozen=True, eq=False)
class Set:
    """What a set holds; `files` and `pixels` are None where nobody asked for hashes."""

    name: str
    lines: int
    patients: frozenset[str]
    scans: frozenset[str]
    slices: frozenset[str]
    files: frozenset[str] | None = None
    pixels: frozenset[str] | None = None
    unreadable: tuple[str, ...] = ()

    def of(self, kind: str) -> frozenset[str] | None:
        """The members of a kind of KINDS."""
        found: frozenset[str] | None = getattr(self, kind)
        return found


@dataclass(frozen=True, eq=False)
class Overlap:
    """What two sets share, by kind; None where it was not compared."""

    a: str
    b: str
    shared: dict[str, list[str] | None] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """How many of each kind; names nobody."""
        numbers = {k: None if names is None else len(names) for k, names in self.shared.items()}
        return {"a": self.a, "b": self.b, **numbers}


def read_set(table: pa.Table, *, name: str, root: str = "", hashes: bool = False) -> Set:
    """A set from its table of labels; hashes of bytes and of decoded pixels if they are wanted.

    `root` is what relative URIs are below.
    """
    patients = _column(table, "patient")
    scans = _column(table, "scan")
    found: dict[str, Any] = {}
    if hashes:
        found = _hashes(_uris(table, name=name, root=root))
    return Set(
        name=name,
        lines=len(table),
        patients=frozenset(patients) - {""},
        # a scan's number may be the patient's own count
        scans=frozenset(f"{p}/{s}" for p, s in zip(patients, scans, strict=True) if s),
        slices=frozenset(identities(table)),
        **found,
    )


def compare(sets: Sequence[Set]) -> list[Overlap]:
    """Every two of the sets."""
    overlaps = []
    for a, b in itertools.combinations(sets, 2):
        shared: dict[str, list[str] | None] = {}
        for kind in KINDS:
            one, other = a.of(kind), b.of(kind)
            shared[kind] = None if one is None or other is None else sorted(one & other)
        overlaps.append(Overlap(a.name, b.name, shared))
    return overlaps


def summary(sets: Sequence[Set], overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Counts alone, as metrics.json has them, with a line for each overlap that spoils a test."""
    by_name = {one.name: one for one in sets}
    warnings = []
    for overlap in overlaps:
        kinds = {k: names for k, names in overlap.shared.items() if names}
        if kinds:
            said = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
            share = len(overlap.shared["patients"] or ())
            of_a, of_b = (len(by_name[n].patients) for n in (overlap.a, overlap.b))
            warnings.append(
                f"{overlap.a} and {overlap.b} share {said}: {share} of the {of_a} patients of the "
                f"one and of the {of_b} of the other; a result on one is not independent of "
                "training on the other"
            )
    return {
        "sets": [
            {"name": s.name, "slices": s.lines, "patients": len(s.patients)}
            | ({"unreadable": len(s.unreadable)} if s.files is not None else {})
            for s in sets
        ],
        "pairs": [overlap.counts() for overlap in overlaps],
        "warnings": warnings,
    }


def named(overlaps: Sequence[Overlap]) -> dict[str, list[str]]:
    """Columns a, b, kind, name of everything that two sets share; it names patients."""
    rows = [
        (overlap.a, overlap.b, kind, name)
        for overlap in overlaps
        for kind, names in overlap.shared.items()
        for name in names or ()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 4
    return {n: list(c) for n, c in zip(("a", "b", "kind", "name"), columns, strict=True)}


def _column(table: pa.Table, name: str) -> list[str]:
    return table[name].to_pylist() if name in table.column_names else [""] * len(table)


def _uris(table: pa.Table, *, name: str, root: str) -> list[str]:
    if "uri" not in table.column_names:
        raise DataError(f"{name}: no column uri, so its files cannot be hashed; leave out --hash")
    uris = []
    for uri in table["uri"].to_pylist():
        if "::" in uri:
            raise DataError(f"{name}: {uri} is in an archive; hashes are of loose files alone")
        uris.append(store.below(root, uri))
    return uris


def _hashes(uris: list[str]) -> dict[str, Any]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as pool:
        found = list(pool.map(_hash, uris))
    return {
        "files": frozenset(file for file, _ in found if file),
        "pixels": frozenset(pixels for _, pixels in found if pixels),
        "unreadable": tuple(u for u, (_, pixels) in zip(uris, found, strict=True) if not pixels),
    }


def _hash(uri: str) -> tuple[str, str]:
    """SHA-256 of the bytes, and of the pixels with their shape and unit; "" if unreadable."""
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
