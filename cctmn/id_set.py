"""Large sets of 128-bit ids, in 16 bytes each: the slice ids and the objects of a whole archive.

A set is sorted once and asked for many ids at a time, so that a run over ten million slices stays
linear in time and small in memory. Arrow builds a new hash table of all ids for each question.

Shape suffix: N ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ID_BYTES: Final = 16
# Two unsigned numbers per id: shape (N, 2), the high half first.
Ids = NDArray[np.uint64]
Places = NDArray[np.int64]
_BIG_ENDIAN: Final = np.dtype(">u8")


def no_ids() -> Ids:
    """Return an empty array of ids."""
    return np.empty((0, 2), np.uint64)


def of_hex(column: pa.Array | pa.ChunkedArray) -> Ids:
    """Return the ids of a column of strings of 32 hex digits each.

    Raises ValueError for any other string, and for null.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return concatenated([_of_chunk(chunk) for chunk in chunks])


def _of_chunk(chunk: pa.Array) -> Ids:
    if not len(chunk):
        return no_ids()
    # From Arrow's buffer as a whole, so that no Python string is made of each.
    _, offsets, characters = chunk.buffers()
    ends = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset)
    if chunk.null_count or not (np.diff(ends) == 2 * ID_BYTES).all():
        raise ValueError("not ids of 32 hex digits")
    digits = characters[int(ends[0]) : int(ends[-1])].to_pybytes()
    data = bytes.fromhex(digits.decode("ascii"))
    if 2 * len(data) != len(digits):  # it passes over spaces
        raise ValueError("not ids of 32 hex digits")
    return _of_bytes(data)


def of_names(names: Iterable[str]) -> Ids:
    """Return ids that are hashes of these names, cut to 128 bits."""
    hashes = (
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=ID_BYTES).digest()
        for name in names
    )
    return _of_bytes(b"".join(hashes))


def _of_bytes(data: bytes) -> Ids:
    return np.frombuffer(data, _BIG_ENDIAN).reshape(-1, 2).astype(np.uint64)


def concatenated(parts: Sequence[Ids]) -> Ids:
    """Return these ids in one array."""
    return np.concatenate([no_ids(), *parts])


class IdSet:
    """A set of ids that does not change; `find` also says at which place an id was given.

    It takes 20 bytes per id. The ids are kept sorted, by their high half and then by their low one.
    """

    def __init__(self, ids_N: Ids | None = None) -> None:
        ids_N = no_ids() if ids_N is None else ids_N
        order_N = _sorted(ids_N)
        self._high_N = ids_N[order_N, 0]
        self._low_N = ids_N[order_N, 1]
        self._place_N = order_N.astype(np.uint32)

    def __len__(self) -> int:
        """Return the number of ids that were given, repetitions included."""
        return len(self._high_N)

    def find(self, ids_N: Ids) -> Places:
        """Return for each id the place at which it was given first, -1 if it is not in the set."""
        if not len(self):
            return np.full(len(ids_N), -1)
        # In a large set, looking up ids in their order is three times as fast: they lie close by.
        order_N = np.argsort(ids_N[:, 0])
        place_N = np.empty(len(ids_N), np.int64)
        place_N[order_N] = self._find(ids_N[order_N])
        return place_N

    def _find(self, ids_N: Ids) -> Places:
        at_N = np.searchsorted(self._high_N, ids_N[:, 0])
        while True:
            inside_N = at_N < len(self)
            same_N = inside_N & (self._high_N[np.where(inside_N, at_N, 0)] == ids_N[:, 0])
            low_N = self._low_N[np.where(same_N, at_N, 0)]
            # Ids whose high halves are equal follow each other, by their low halves.
            before_N = same_N & (low_N < ids_N[:, 1])
            if not before_N.any():
                break
            at_N = at_N + before_N
        is_found_N = same_N & (low_N == ids_N[:, 1])
        place_N = self._place_N[np.where(is_found_N, at_N, 0)].astype(np.int64)
        return np.where(is_found_N, place_N, -1)

    def contains(self, ids_N: Ids) -> NDArray[np.bool_]:
        """Return for each id whether it is in the set."""
        return self.find(ids_N) >= 0

    def repetitions(self) -> Places:
        """Return the places of all ids that had been given before, in ascending order."""
        again_N = (self._high_N[1:] == self._high_N[:-1]) & (self._low_N[1:] == self._low_N[:-1])
        return np.sort(self._place_N[1:][again_N]).astype(np.int64)

    def ids_of(self, chosen_N: NDArray[np.bool_]) -> Ids:
        """Return the ids that were given at the chosen places, sorted."""
        at = chosen_N[self._place_N]
        return np.stack([self._high_N[at], self._low_N[at]], axis=1)

    def places_in(self, other: IdSet) -> Places:
        """Return the places of all ids that are in the other set too."""
        is_one = np.zeros(len(self), np.bool_)
        for at in range(0, len(self), 1 << 16):
            part = slice(at, at + (1 << 16))
            is_one[part] = other.contains(np.stack([self._high_N[part], self._low_N[part]], axis=1))
        return self._place_N[is_one].astype(np.int64)


def _sorted(ids_N: Ids) -> Places:
    """Return the places of the ids in their order; of equal ids the first one comes first.

    Few ids share their high half, so sorting by that alone is enough for all others. It takes a
    third of the time of sorting by both.
    """
    order_N = np.argsort(ids_N[:, 0], kind="stable")
    high_N = ids_N[order_N, 0]
    is_next = np.zeros(len(ids_N), np.bool_)  # has the high half of the id before it
    is_next[1:] = high_N[1:] == high_N[:-1]
    is_shared = is_next.copy()
    is_shared[:-1] |= is_next[1:]
    shared = order_N[is_shared]
    order_N[is_shared] = shared[np.lexsort((ids_N[shared, 1], ids_N[shared, 0]))]
    return order_N
