"""Storage in memory under mem://, as a third kind that joins by one module."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any, Final

from fsspec.implementations.memory import MemoryFileSystem

from cctmn.errors import ObjectError
from cctmn.store import ObjectInfo, Traits, Version

traits: Final = Traits(file_locks=False, whole_writes=True, list_period_s=0.02)
_files: Final[Any] = MemoryFileSystem()


def _path(uri: str) -> str:
    return "/" + uri.removeprefix("mem://")


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def clear() -> None:
    _files.store.clear()


def list_objects(text: str) -> Iterator[ObjectInfo]:
    for path in sorted(_files.find(_path(text))):
        data = _files.cat_file(path)
        yield ObjectInfo("mem://" + path.lstrip("/"), len(data), _etag(data))


def list_below(folder: str) -> Iterator[ObjectInfo]:
    return list_objects(folder)


def is_reachable(uri: str) -> bool:
    return True


def look_up(uri: str) -> ObjectInfo | None:
    return next((info for info in list_objects(uri) if info.uri == uri), None)


def read_range(uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
    data = read_version(uri).data
    if etag and _etag(data) != etag:
        raise ObjectError("changed", uri)
    return data[start:] if length is None else data[start : start + length]


def read_version(uri: str) -> Version:
    try:
        data = _files.cat_file(_path(uri))
    except FileNotFoundError:
        raise ObjectError("not_found", uri) from None
    return Version(data, _etag(data), time.time() - _files.modified(_path(uri)).timestamp())


def put(uri: str, data: bytes, *, private: bool) -> None:
    _files.pipe_file(_path(uri), data)


def put_if_absent(uri: str, data: bytes) -> str | None:
    return None if _files.exists(_path(uri)) else _put(uri, data)


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    if not _files.exists(_path(uri)) or _etag(_files.cat_file(_path(uri))) != etag:
        return None
    return _put(uri, data)


def _put(uri: str, data: bytes) -> str:
    put(uri, data, private=False)
    return _etag(data)


def delete(uri: str) -> None:
    if _files.exists(_path(uri)):
        _files.rm_file(_path(uri))


def make_folder(uri: str) -> None:
    pass
