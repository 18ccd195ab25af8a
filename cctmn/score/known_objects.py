"""The objects that earlier runs have looked into, so that an unchanged one is not opened again.

An object is known by its URI, size and ETag; for a local file the ETag is the time of its last
change. The memory is some 60 bytes per object.

Shape suffix: N objects, in the order of the shards of the inventory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cctmn import id_set
from cctmn.errors import TRANSIENT
from cctmn.id_set import Ids, IdSet
from cctmn.schema import WHOLE_OBJECTS
from cctmn.store import ObjectInfo

COLUMNS: Final = ("uri", "object_size", "etag", "error_code")


class Why(Enum):
    """Why an object must be looked into."""

    NEW = "new"
    CHANGED = "changed"  # it was another object when it was looked into
    INCOMPLETE = "incomplete"  # the earlier look was not complete, or its result is open


class Unknown(NamedTuple):
    """An object of the listing that must be looked into."""

    info: ObjectInfo
    why: Why


class KnownObjects:
    """What the inventory of a folder says about objects. `add` every shard, then `close`.

    With `retry_errors` an object with an error is looked into again.
    """

    def __init__(self, *, retry_errors: bool = False) -> None:
        self._retry_errors = retry_errors
        self._parts: list[tuple[NDArray[np.int32], Ids, NDArray[np.int64], NDArray[np.bool_]]] = []

    def add(self, table: pa.Table, *, shard: int) -> None:
        """Add the objects of a shard, by a table of at least COLUMNS."""
        if not len(table):
            return
        uris = table["uri"].combine_chunks()
        # The rows of an object follow each other.
        begins = np.ones(len(table), np.bool_)
        begins[1:] = pc.not_equal(uris.slice(1), uris.slice(0, len(uris) - 1)).to_numpy(
            zero_copy_only=False
        )
        first_N = np.flatnonzero(begins)
        objects = table.take(pa.array(first_N))
        states = (
            _state(size, etag, code)
            for size, etag, code in zip(
                *(objects[name].to_pylist() for name in COLUMNS[1:]), strict=True
            )
        )
        codes = table["error_code"]
        is_open = (
            pc.not_equal(codes, "")
            if self._retry_errors
            else pc.is_in(codes, value_set=pa.array(sorted(TRANSIENT)))
        )
        complete_N = ~np.logical_or.reduceat(is_open.to_numpy(zero_copy_only=False), first_N)
        if WHOLE_OBJECTS not in (table.schema.metadata or {}):
            complete_N[-1] = False
        self._parts.append(
            (
                np.full(len(first_N), shard, np.int32),
                id_set.of_names(objects["uri"].to_pylist()),
                np.fromiter(states, np.int64, len(first_N)),
                complete_N,
            )
        )

    def close(self) -> None:
        """End the adding. An object of two shards counts as not complete."""
        shards, ids, states, complete = zip(*self._parts, strict=True) if self._parts else [()] * 4
        self._parts.clear()
        self._shard_N = np.concatenate([np.zeros(0, np.int32), *shards])
        self._states_N = np.concatenate([np.zeros(0, np.int64), *states])
        self._complete_N = np.concatenate([np.zeros(0, np.bool_), *complete])
        ids_N = id_set.concatenated(ids)
        del ids
        self._set = IdSet(ids_N)
        again = self._set.repetitions()
        self._complete_N[again] = False
        self._complete_N[self._set.find(ids_N[again])] = False
        self._listed_N = np.zeros(len(ids_N), np.bool_)
        self._listed_N[again] = True

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self._set)

    def incomplete(self) -> Ids:
        """Return the ids of the objects that will be looked into again, if they are listed."""
        return self._set.ids_of(~self._complete_N)

    def unknown(self, listed: Sequence[ObjectInfo]) -> list[Unknown]:
        """Return those objects of a part of the listing that must be looked into."""
        if not len(self._set):
            return [Unknown(info, Why.NEW) for info in listed]
        places = self._set.find(id_set.of_names(info.uri for info in listed))
        states = [_state(info.size, info.etag, info.error_code) for info in listed]
        self._listed_N[places[places >= 0]] = True
        unknown = []
        for info, place, state in zip(listed, places.tolist(), states, strict=True):
            if place < 0:
                unknown.append(Unknown(info, Why.NEW))
            elif not self._complete_N[place]:
                unknown.append(Unknown(info, Why.INCOMPLETE))
            elif self._states_N[place] != state:
                unknown.append(Unknown(info, Why.CHANGED))
        return unknown

    def not_listed(self) -> int:
        """Return the number of known objects that no page of the listing had."""
        return int((~self._listed_N).sum())

    def shards_of(self, objects: Ids) -> list[int]:
        """Return the numbers of the shards that have rows of these objects."""
        places = self._set.places_in(IdSet(objects))
        return [int(shard) for shard in np.unique(self._shard_N[places])]


def _state(size: int, etag: str, code: str) -> int:
    """Return a hash of what differs when an object was replaced; it holds for this process alone.

    Without an ETag that is why the object cannot be read.
    """
    return hash((size, etag or code))
