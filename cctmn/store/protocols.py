"""What a kind of storage offers: the protocols `Source` and `Sink` and the values they exchange.

A module or an object can implement them (`local.py` and `s3.py` are modules). It joins by
`cctmn.store.register("scheme", source, sink)`; no other file needs to know about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object.

    `size` is in bytes, `etag` changes with the content, and `error_code` is the code of what
    forbids reading it (a key of SLICE_CODES), or "".
    """

    uri: str
    size: int
    etag: str
    error_code: str = ""


@dataclass(frozen=True)
class Version:
    """One object as it is now.

    `age_s` is the time since its last write, and `clock_s` the time by which the clock of the
    storage is ahead of that of this machine.
    """

    data: bytes
    etag: str
    age_s: float
    clock_s: float = 0.0


@dataclass(frozen=True)
class Traits:
    """How a kind of storage behaves, for the few callers that must adapt to it."""

    # URIs are local paths (to_path) and the kernel's file locks work. Otherwise a lock is an
    # object with a lease (lease.py).
    file_locks: bool
    # A writer that is killed leaves either a whole object or none, also through Arrow.
    whole_writes: bool
    # The pause between two listings of a folder that is being watched.
    list_period_s: float


class Source(Protocol):
    """Storage that can be listed and read.

    A method raises ObjectError where one object cannot be read, InputError where the user named a
    place that does not exist or may not be listed, and StoreError where storage does not answer.
    """

    def list_objects(self, text: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, prefix or glob, or the object itself, sorted."""
        ...

    def list_below(self, folder: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder, whose name is never a pattern, sorted."""
        ...

    def look_up(self, uri: str) -> ObjectInfo | None:
        """Return the object of exactly this name, None where there is none."""
        ...

    def is_reachable(self, uri: str) -> bool:
        """Return whether the storage of an object answers at all, if only with a refusal.

        It is asked after a read has failed, to tell a bad object from storage that is down.
        """
        ...

    def read_range(self, uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
        """Return bytes [start, start + length); fewer only where the object ends.

        With an ETag, raises ObjectError("changed") if the object has another one by now.
        """
        ...

    def read_version(self, uri: str) -> Version:
        """Return the whole object with its ETag and age."""
        ...


class Sink(Protocol):
    """Storage that an output folder can be written to."""

    @property
    def traits(self) -> Traits:
        """How this storage behaves."""
        ...

    def put(self, uri: str, data: bytes, *, private: bool) -> None:
        """Write a whole object; others see all of it or nothing. private: for its owner alone."""
        ...

    def put_if_absent(self, uri: str, data: bytes) -> str | None:
        """Write an object unless there is one. Returns its ETag, or None if there was one.

        Raises NotImplementedError where the storage does not know conditional writes.
        """
        ...

    def put_if_match(self, uri: str, data: bytes, *, etag: str) -> str | None:
        """Replace the object of this ETag. Returns the new ETag, or None if it has another.

        Raises NotImplementedError where the storage does not know conditional writes.
        """
        ...

    def delete(self, uri: str) -> None:
        """Remove an object; a missing one is not an error."""
        ...

    def make_folder(self, uri: str) -> None:
        """Make a folder, where this storage needs one before a file can be written in it."""
        ...
