"""Objects by URI: list, read, write and delete, on every kind of storage that is registered.

This is the only place that looks at a URI's scheme to pick the storage. What is wrong with one
object is an ObjectError; storage that does not answer after its retries is a StoreError, after
which the job can be resumed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from cctmn.errors import InputError, ObjectError, StoreError
from cctmn.store import local, s3
from cctmn.store.protocols import ObjectInfo, Sink, Source, Traits, Version
from cctmn.store.uri import display, join, scheme, to_path

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_SOURCES: dict[str, Source] = {"file": local, "s3": s3}
_SINKS: dict[str, Sink] = {"file": local, "s3": s3}


def register(name: str, source: Source, sink: Sink | None = None) -> None:
    """Add a kind of storage for URIs of the scheme `name`; without a sink it is read only."""
    _SOURCES[name] = source
    if sink is None:
        _SINKS.pop(name, None)
    else:
        _SINKS[name] = sink


def unregister(name: str) -> None:
    """Remove a kind of storage again."""
    _SOURCES.pop(name, None)
    _SINKS.pop(name, None)


def list_objects(text: str, *, hint: str = "check INPUT") -> Iterator[ObjectInfo]:
    """Yield every object below a folder, prefix or glob, or the object itself, sorted by URI.

    Nothing is left out: hidden files are listed, and a linked folder, a pipe or an unreadable
    folder is listed with its code. Raises InputError if nothing is there; `hint` is what its
    message tells the user to do.
    """
    empty = True
    for info in find_objects(text):
        empty = False
        yield info
    if empty:
        raise InputError(f"no such file, folder, prefix or match; {hint}", display(text))


def find_objects(text: str) -> Iterator[ObjectInfo]:
    """Yield the same objects as list_objects, but nothing where there is nothing."""
    return _source(text).list_objects(text)


def list_below(folder: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a folder, whose name is never a pattern; nothing if there is none."""
    return _source(folder).list_below(folder)


def look_up(uri: str) -> ObjectInfo | None:
    """Return the object of exactly this name, which is never a pattern; None where there is none.

    An object that may not be read is returned with its code.
    """
    return _source(uri).look_up(uri)


def read_all(uri: str, *, hint: str = "") -> bytes:
    """Return the whole object. Raises ObjectError, whose message ends with `hint`."""
    try:
        return read_range(uri, start=0, length=None)
    except ObjectError as error:
        raise ObjectError(error.code, error.where, hint) from None


def read_range(uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
    """Return bytes [start, start + length) of the object; fewer only where the object ends.

    With an ETag, raises ObjectError("changed") if the object has another one by now.
    """
    if length == 0:
        return b""
    return _source(uri).read_range(uri, start=start, length=length, etag=etag)


def is_reachable(uri: str) -> bool:
    """Return whether the storage of an object answers at all, if only with a refusal."""
    return _source(uri).is_reachable(uri)


def read_version(uri: str) -> Version | None:
    """Return the whole object with its ETag and age, or None where there is none."""
    try:
        return _source(uri).read_version(uri)
    except ObjectError as error:
        if error.code == "not_found":
            return None
        raise StoreError(error.text, error.where) from None


def read_optional(uri: str) -> bytes | None:
    """Return the whole object, or None where there is none."""
    try:
        return read_all(uri)
    except ObjectError as error:
        if error.code == "not_found":
            return None
        raise StoreError(error.text, error.where) from None


def put(uri: str, data: bytes, *, private: bool = False) -> None:
    """Write a whole object; others see all of it or nothing. private: for its owner alone."""
    _sink(uri).put(uri, data, private=private)


@contextmanager
def new_file(uri: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write, which becomes the whole object when the block ends.

    If the block fails, nothing is written. A local file is written as it grows; for every other
    storage it is held in memory until then.
    """
    if traits(uri).file_locks:
        with local.new_file(uri, private=private) as file:
            yield file
        return
    buffer = io.BytesIO()
    yield buffer
    put(uri, buffer.getvalue(), private=private)


@contextmanager
def new_file_named_last(folder: str, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """Yield a file to write, as new_file does, whose name is known only when the block ends.

    `name` is called then: a name can hold the hash of the bytes that were written.
    """
    if traits(folder).file_locks:
        with local.new_file_named_last(folder, name) as file:
            yield file
        return
    buffer = io.BytesIO()
    yield buffer
    put(join(folder, name()), buffer.getvalue())


def put_if_absent(uri: str, data: bytes) -> str | None:
    """Write an object unless there is one. Returns its ETag, or None if there was one.

    Raises NotImplementedError where the storage does not know conditional writes. A server that
    ignores the condition writes: call this twice to find out.
    """
    return _sink(uri).put_if_absent(uri, data)


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    """Replace the object of this ETag. Returns the new ETag, or None if it has another."""
    return _sink(uri).put_if_match(uri, data, etag=etag)


def delete(uri: str) -> None:
    """Remove an object; a missing one is not an error."""
    _sink(uri).delete(uri)


def make_folder(uri: str) -> None:
    """Make a folder, where the storage needs one before a file can be written in it."""
    _sink(uri).make_folder(uri)


def traits(uri: str) -> Traits:
    """Return how the storage of this URI behaves."""
    return _sink(uri).traits


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return Arrow's file system for the URI and the path in it.

    Local files are Arrow's own. Every other storage is read and written by the functions of this
    module, with their retries and errors.
    """
    import pyarrow.fs as pafs

    from cctmn.store.arrow import Handler

    if traits(uri).file_locks:
        return pafs.LocalFileSystem(), str(to_path(uri))
    prefix = scheme(uri) + "://"
    return pafs.PyFileSystem(Handler(prefix)), uri.removeprefix(prefix)


def _source(uri: str) -> Source:
    source = _SOURCES.get(scheme(uri))
    if source is None:
        known = ", ".join(f"{name}://" for name in sorted(_SOURCES))
        raise InputError(f"unknown kind of storage; give a path or one of {known}", uri)
    return source


def _sink(uri: str) -> Sink:
    _source(uri)
    sink = _SINKS.get(scheme(uri))
    if sink is None:
        known = ", ".join(f"{name}://" for name in sorted(_SINKS))
        raise InputError(f"this storage is read only; write to a path or one of {known}", uri)
    return sink
