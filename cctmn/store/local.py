"""Files of this machine or of a shared file system, by file:// URI; implements Source and Sink."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from cctmn.errors import ObjectError, StoreError
from cctmn.store.protocols import ObjectInfo, Traits, Version
from cctmn.store.uri import WILDCARDS, display, to_path, to_uri

# A killed process can leave a Parquet file without its footer.
traits: Final = Traits(file_locks=True, whole_writes=False, list_period_s=2.0)


def list_objects(text: str) -> Iterator[ObjectInfo]:
    """Yield the files below a folder or glob, or the file itself.

    Hidden files are listed. A linked folder, a pipe or a locked folder is listed with its code.
    """
    path = to_path(to_uri(text))
    if not os.path.lexists(path) and any(c in text for c in WILDCARDS):
        for match in sorted(glob.glob(str(path), recursive=True, include_hidden=True)):  # noqa: PTH207
            if not Path(match).is_dir():
                yield _info(Path(match))
    elif os.path.isdir(path):  # noqa: PTH112 - false, and no error, for a name that is too long
        yield from _walk(path)
    elif os.path.lexists(path):
        yield _info(path)


def list_below(folder: str) -> Iterator[ObjectInfo]:
    """Yield the files below a folder, whose name is never a pattern."""
    path = to_path(folder)
    if path.is_dir():
        yield from _walk(path)


def look_up(uri: str) -> ObjectInfo | None:
    """Return the file of exactly this name, None where there is none."""
    path = to_path(uri)
    return _info(path) if os.path.lexists(path) else None


def is_reachable(uri: str) -> bool:
    """Return whether the disk of a file answers, by a look at its folder."""
    try:
        to_path(uri).parent.stat()
    except OSError:
        return False
    return True


def read_range(uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
    """Return bytes [start, start + length) of the file.

    With an ETag, raises ObjectError("changed") if the file has another one by now.
    """
    try:
        with to_path(uri).open("rb") as file:
            file.seek(start)
            data = file.read(-1 if length is None else length)
            if etag and _etag(os.fstat(file.fileno())) != etag:
                raise ObjectError("changed", display(uri))
            return data
    except OSError as error:
        _raise(error, uri)


def read_version(uri: str) -> Version:
    """Return the whole file with its ETag and age."""
    try:
        with to_path(uri).open("rb") as file:
            status = os.fstat(file.fileno())
            return Version(file.read(), _etag(status), time.time() - status.st_mtime)
    except OSError as error:
        _raise(error, uri)


def put(uri: str, data: bytes, *, private: bool) -> None:
    """Write a whole file under another name and rename it; private gives it mode 0600."""
    with new_file(uri, private=private) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(uri: str, *, private: bool) -> Iterator[BinaryIO]:
    """Yield a file to write, which gets its name when the block ends; private: mode 0600.

    If the block fails, nothing is left of it, and what had the name before stays.
    """
    path = to_path(uri)
    with _new_file(path.parent, path.name, name=lambda: path.name, private=private) as file:
        yield file


@contextlib.contextmanager
def new_file_named_last(folder: str, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """Yield a file to write in a folder; `name` is called when the block ends, and names it."""
    with _new_file(to_path(folder), "new", name=name, private=False) as file:
        yield file


@contextlib.contextmanager
def _new_file(
    folder: Path, draft: str, *, name: Callable[[], str], private: bool
) -> Iterator[BinaryIO]:
    path, temporary = folder / draft, folder / f".{draft}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        path = folder / name()
        temporary.replace(path)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)  # else a power cut may take the name away again
        finally:
            os.close(handle)
    except OSError as error:
        _remove(temporary)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run the same command again" if full else "check OUT"
        raise StoreError(f"cannot be written ({error.strerror}); {remedy}", path) from None
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    """Remove a file where that is possible, after another error."""
    with contextlib.suppress(OSError):
        path.unlink()


def put_if_absent(uri: str, data: bytes) -> str | None:
    """Raise NotImplementedError: local writers use the kernel's file locks instead."""
    raise NotImplementedError


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    """Raise NotImplementedError: local writers use the kernel's file locks instead."""
    raise NotImplementedError


def delete(uri: str) -> None:
    """Remove a file; a missing one is not an error."""
    to_path(uri).unlink(missing_ok=True)


def make_folder(uri: str) -> None:
    """Make the folder and those above it."""
    path = to_path(uri)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot be made ({error.strerror}); check OUT", path) from None


def _walk(folder: Path) -> Iterator[ObjectInfo]:
    """Yield the files below a folder, sorted; folders may be nested thousands deep."""
    levels = [_entries(folder)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, ObjectInfo):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            levels.append(_entries(entry))
        else:
            yield _info(Path(entry))


def _entries(folder: os.PathLike[str]) -> Iterator[os.DirEntry[str] | ObjectInfo]:
    """Yield the entries of a folder, sorted, or the folder itself with its code."""
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield ObjectInfo(to_uri(os.fspath(folder)), 0, "", _code(error))


def _info(path: Path) -> ObjectInfo:
    uri = to_uri(str(path))
    try:
        status = path.stat()
    except OSError as error:
        # The file is a link to nowhere, it lies behind a locked folder, or its path is too long.
        return ObjectInfo(uri, 0, "", _code(error))
    code = "" if stat.S_ISREG(status.st_mode) else "not_regular_file"
    return ObjectInfo(uri, status.st_size, _etag(status), code)


def _code(error: OSError) -> str:
    return "permission_denied" if isinstance(error, PermissionError) else "not_found"


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _raise(error: OSError, uri: str) -> NoReturn:
    where = display(uri)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise ObjectError("not_found", where) from None
    if isinstance(error, PermissionError):
        raise ObjectError("permission_denied", where) from None
    if isinstance(error, IsADirectoryError):
        raise ObjectError("not_regular_file", where) from None
    raise StoreError(
        f"the disk did not answer ({error.strerror}); run the same command again to resume", where
    ) from None
