"""A record of the patients and slices that a model was fitted on, for the model's card.

A later evaluation compares its own slices with the record, whatever the file of labels is called
and in whichever order it is. The card may be handed on, so the record holds no names but keyed
hashes, of at most 500 patients and 500 slices. They are slow to compute (scrypt), so that trying
out many names takes long; somebody who knows a name can still test it.

Reads: ids of patients and names of slices.
Writes: a record, and how many patients and slices of another set it recognises.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from cctmn.data.labels import base_name
from cctmn.data.patients import folded
from cctmn.data.slice_names import parse_name

# A set with more members is recorded by a random sample of this many.
MOST_HASHES: Final = 500
_KEY_BYTES: Final = 16
_HASH_BYTES: Final = 8
# About 4 ms for each name.
_SCRYPT: Final[Mapping[str, int]] = {"n": 1 << 11, "r": 8, "p": 1}
_KINDS: Final = ("patients", "slices")


@dataclass(frozen=True)
class Members:
    """Who is in a set: folded ids of known patients, and texts that name slices anywhere."""

    patients: frozenset[str]
    slices: frozenset[str]

    @classmethod
    def of(cls, patients: Sequence[str], names: Sequence[str]) -> Members:
        """Read a set from the patient ("" if unknown) and the path or name of each slice.

        The name of a public data set says alone which slice it is. Another name is told apart by
        its patient, because every scanner writes IM0001.dcm, or by its whole path.
        """
        slices = []
        for patient, name in zip(patients, names, strict=True):
            file = base_name(name)
            if known := parse_name(file):
                slices.append(known.key)
            else:
                slices.append(folded(f"{patient}/{file}" if patient else name))
        return cls(frozenset(folded(p) for p in patients if p), frozenset(slices))


@dataclass(frozen=True)
class Shared:
    """How many members of two sets are the same, among those that could be compared."""

    patients: int
    slices: int
    recorded_patients: int  # of the recorded set
    recorded_slices: int
    is_sampled: bool  # whether only a random sample of the recorded set could be compared


def record(members: Members) -> dict[str, Any]:
    """Return the record of a set, as a card keeps it."""
    key = secrets.token_hex(_KEY_BYTES)
    kinds = {kind: _sample(getattr(members, kind), key=key) for kind in _KINDS}
    return {"key": key} | {
        kind: {
            "count": len(getattr(members, kind)),
            "limit": limit,
            "hashes": " ".join(sorted(_hashes(names, key=key))),
        }
        for kind, (names, limit) in kinds.items()
    }


def summary(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many members a record has, and by how many hashes, for a person to read."""
    counts = {kind: (recorded[kind]["count"], recorded[kind]["hashes"].split()) for kind in _KINDS}
    return {k: f"{n:,}, by {len(hashes):,} keyed hashes" for k, (n, hashes) in counts.items()}


def compare(recorded: Mapping[str, Any], members: Members) -> Shared:
    """Compare a set with a recorded one. Raises KeyError or TypeError if it is not a record."""
    key, shared = recorded["key"], {}
    for kind in _KINDS:
        known, names = recorded[kind], getattr(members, kind)
        if known["limit"]:
            names = [name for name in names if _rank(name, key=key) <= known["limit"]]
        shared[kind] = len(_hashes(names, key=key) & set(known["hashes"].split()))
    return Shared(
        **shared,
        recorded_patients=int(recorded["patients"]["count"]),
        recorded_slices=int(recorded["slices"]["count"]),
        is_sampled=any(recorded[kind]["limit"] for kind in _KINDS),
    )


def _sample(names: Collection[str], *, key: str) -> tuple[list[str], str]:
    """Return at most MOST_HASHES names, chosen by their rank, and the last rank ("": all)."""
    if len(names) <= MOST_HASHES:
        return list(names), ""
    chosen = sorted(names, key=lambda name: _rank(name, key=key))[:MOST_HASHES]
    return chosen, _rank(chosen[-1], key=key)


def _rank(name: str, *, key: str) -> str:
    """Return a random number for a name, the same for every set under one key."""
    text = name.encode("utf-8", "surrogateescape")
    return hmac.new(bytes.fromhex(key), text, hashlib.sha256).digest()[:_HASH_BYTES].hex()


def _hashes(names: Collection[str], *, key: str) -> set[str]:
    def slow(name: str) -> str:
        text = name.encode("utf-8", "surrogateescape")
        salt = bytes.fromhex(key)
        return hashlib.scrypt(text, salt=salt, dklen=_HASH_BYTES, **_SCRYPT).hex()

    with ThreadPoolExecutor() as pool:  # scrypt runs without the lock of the interpreter
        return set(pool.map(slow, names))
