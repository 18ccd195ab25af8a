"""Any storage of this package as a file system of Arrow, for Parquet, Ray Data and Ray Train.

Objects are read and written whole: one request each, with the client, the retries and the errors
that all other reads and writes have. A path is a URI without its scheme.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cctmn.errors import ObjectError
from cctmn.store import objects
from cctmn.store.protocols import ObjectInfo


@dataclass(frozen=True)
class Handler(pafs.FileSystemHandler):
    """What pyarrow.fs.PyFileSystem calls; `prefix` is a scheme such as "s3://".

    A folder is there when an object is below it. A missing object is a FileNotFoundError, as Arrow
    expects; all else that fails is an error of this package.
    """

    prefix: str

    def get_type_name(self) -> str:
        return "cctmn"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        base = selector.base_dir.rstrip("/")
        infos: dict[str, pafs.FileInfo] = {}
        for found in self._below(base):
            parts = found.uri.removeprefix(self._uri(base)).strip("/").split("/")
            shown = len(parts) if selector.recursive else 1
            for depth in range(1, min(shown, len(parts) - 1) + 1):
                folder = "/".join([base, *parts[:depth]])
                infos[folder] = pafs.FileInfo(folder, pafs.FileType.Directory)
            if len(parts) <= shown:
                path = "/".join([base, *parts])
                infos[path] = pafs.FileInfo(path, pafs.FileType.File, size=found.size)
        if not infos and not selector.allow_not_found:
            raise FileNotFoundError(base)
        return list(infos.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: a folder is there as soon as an object is below it."""

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path, missing_dir_ok=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        present = [found.uri for found in self._below(path)]
        if not present and not missing_dir_ok:
            raise FileNotFoundError(path)
        for uri in present:
            objects.delete(uri)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        objects.delete(self._uri(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        objects.put(self._uri(dest), self._bytes(src))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self._bytes(path))

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self._bytes(path))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:  # noqa: ARG002
        return pa.PythonFile(_Upload(self._uri(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError

    def _uri(self, path: str) -> str:
        return self.prefix + path

    def _info(self, path: str) -> pafs.FileInfo:
        found = objects.look_up(self._uri(path)) if path.strip("/") else None
        if found is not None and not found.error_code:
            return pafs.FileInfo(path, pafs.FileType.File, size=found.size)
        is_folder = next(self._below(path), None) is not None
        return pafs.FileInfo(path, pafs.FileType.Directory if is_folder else pafs.FileType.NotFound)

    def _below(self, path: str) -> Iterator[ObjectInfo]:
        return objects.list_below(self._uri(path))

    def _bytes(self, path: str) -> bytes:
        try:
            return objects.read_all(self._uri(path))
        except ObjectError as error:
            if error.code == "not_found":
                raise FileNotFoundError(path) from None
            raise


class _Upload(io.BytesIO):
    """A file in memory that becomes one object when it is closed."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def close(self) -> None:
        if not self.closed:
            objects.put(self._uri, self.getvalue())
        super().close()

    def __del__(self) -> None:
        """Write nothing: a file that nobody closed is not whole."""
