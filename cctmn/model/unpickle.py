"""Reader of `torch.save` files of either format as plain data; nothing of the pickle ever runs.

The result is nested dicts, lists and numbers. A tensor is a `TensorRef` whose shape is known and
whose bytes are not yet read, and every other object is an inert `Record` of its state. The
author's files hold a pickled module object, and a pickle that may call a class may also call
os.system, so no name in the pickle is ever resolved. `legacy` gives the content its meaning.
"""

from __future__ import annotations

import io
import lzma
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from cctmn.errors import ModelError
from cctmn.model.expansion import Expansion

OLD_MAGIC: Final = 0x1950A86A20F9469CFC6C  # first pickle of a torch.save file before torch 1.6
MAX_PICKLE_BYTES: Final = 1 << 26  # 64 MiB; the pickle without tensors is about 20 kB
DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# EXT* look names up in a table of the process, past find_class; the buffers need its caller.
FORBIDDEN: Final = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
# What malformed bytes make zipfile, pickle and struct raise; MemoryError: a made-up length.
DAMAGE: Final = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, MemoryError),
    *(zlib.error, lzma.LZMAError),
    *(AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, OverflowError),
)


class Record(dict[Any, Any]):
    """Stands in for any object: keeps items and `state` (its attributes), has no behaviour."""

    state: dict[Any, Any]

    def __new__(cls, *_: Any, **__: Any) -> Record:
        record = super().__new__(cls)
        record.state = {}
        return record

    def __init__(self, *args: Any, **_: Any) -> None:
        if len(args) == 1 and isinstance(args[0], list):  # Python 2's OrderedDict: pairs
            self.update((p[0], p[1]) for p in args[0] if isinstance(p, list) and len(p) == 2)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state.update(state)


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A run of numbers in the file, by its key."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor of the file; `offset` and `stride` count elements of its storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SavedFile:
    """The content of a file, and the bytes of its storages by key."""

    content: Any
    data: Mapping[str, bytes]

    def tensor(self, ref: TensorRef) -> Tensor:
        """Read one tensor. Raises ModelError if the file does not hold all of it."""
        try:
            raw = self.data[ref.storage.key]
            flat = torch.frombuffer(bytearray(raw), dtype=ref.storage.dtype)
            if math.prod(ref.shape) > flat.numel():  # a stride of 0 would make much of little
                raise ValueError
            return flat.as_strided(ref.shape, ref.stride, ref.offset).clone()
        except (KeyError, ValueError, RuntimeError):
            raise ModelError(
                "the checkpoint is damaged: a tensor exceeds its data; copy it again"
            ) from None


def read(path: Path) -> SavedFile:
    """Read a torch.save file. Raises ModelError if it is missing, damaged or something else."""
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file, file_bytes=path.stat().st_size)
            file.seek(0)
            return _read_old(file.read())
    except OSError as error:
        raise ModelError(
            f"cannot be read ({error.strerror}); check its name and rights", path
        ) from None
    except ModelError as error:
        raise ModelError(error.text, path) from None
    except DAMAGE:
        raise ModelError("not a torch.save checkpoint, or damaged; copy it again", path) from None


def _read_zip(file: BinaryIO, *, file_bytes: int) -> SavedFile:
    """Format since torch 1.6: NAME/data.pkl and NAME/data/KEY, all stored uncompressed."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > file_bytes:
            raise ModelError(
                "not written by torch.save: its entries are larger than the file; copy it again"
            )
        pickles = [e.filename for e in entries if e.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError(
                "a zip archive, but not one of torch.save: it holds no data.pkl; give a checkpoint"
            )
        root = pickles[0].removesuffix("data.pkl")
        names = {entry.filename for entry in entries}
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise ModelError("written on a big-endian machine; save it again on another")
        content, _, _ = _unpickle(archive.read(pickles[0]), start=0)
        prefix = root + "data/"
        data = {n.removeprefix(prefix): archive.read(n) for n in names if n.startswith(prefix)}
    return SavedFile(content, data)


def _read_old(raw: bytes) -> SavedFile:
    """Format before torch 1.6: magic, version, system, content and keys, then the storages."""
    magic, at, _ = _unpickle(raw, start=0)
    if magic != OLD_MAGIC:
        raise ValueError("another pickle")
    for _ in ("protocol version", "byte order and sizes of C types"):
        _, at, _ = _unpickle(raw, start=at)
    content, at, storages = _unpickle(raw, start=at)
    keys, at, _ = _unpickle(raw, start=at)
    data = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", raw, at)
        size = count * storages[key].dtype.itemsize
        at += 8
        if count < 0 or at + size > len(raw):
            raise EOFError
        data[key] = raw[at : at + size]
        at += size
    return SavedFile(content, data)


def _unpickle(raw: bytes, *, start: int) -> tuple[Any, int, dict[str, StorageRef]]:
    """One pickle of `raw` -> its content, where it ends, the storages that it names."""
    end = start
    expansion = Expansion()
    for opcode, argument, position in pickletools.genops(raw[start : start + MAX_PICKLE_BYTES]):
        if opcode.name in FORBIDDEN:
            raise ModelError(f"its pickle uses {opcode.name}; give a file that torch.save wrote")
        # The C unpickler allocates its memo up to the index that the stream claims.
        if opcode.name.endswith("PUT") and int(argument or 0) > len(raw):
            raise ValueError("memo index")
        expansion.follow(opcode, argument)
        assert position is not None
        end = start + position + 1  # the last one is STOP, a single byte
    reader = _InertUnpickler(io.BytesIO(raw[start:end]))
    return reader.load(), end, reader.storages


class _InertUnpickler(pickle.Unpickler):
    """Resolves no name. The few callables that it hands out build references and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # as torch.load reads Python 2's strings
        self.storages: dict[str, StorageRef] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _tensor_ref if name == "_rebuild_tensor_v2" else _unwrapped
        return Record

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # old format: the class of a module with its source text
            return pid[1]
        kind, dtype, key, _device, _count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise ValueError("unknown storage")
        return self.storages.setdefault(str(key), StorageRef(str(key), dtype))


def _tensor_ref(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise ValueError("tensor without storage")
    numbers = (offset, *shape, *stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(stride):
        raise ValueError("tensor shape")
    return TensorRef(storage, offset, tuple(shape), tuple(stride))


def _unwrapped(parameter: Any, *_: Any) -> Any:
    return parameter
