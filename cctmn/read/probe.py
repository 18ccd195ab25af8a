"""Look into an object or archive member by a few small reads: its kind, and its number of frames.

The content decides, never the name. What cannot be scored raises a SliceError with its code; errors
of the storage raise ObjectError or StoreError.
"""

from __future__ import annotations

import tarfile
import zipfile
from typing import BinaryIO, Final, NamedTuple, cast

from cctmn import store
from cctmn.errors import SliceError
from cctmn.read import decode, other_files, tar_archive, zip_archive
from cctmn.read.archive import MAX_OBJECT_BYTES, Member
from cctmn.read.ranges import RangeFile
from cctmn.store import ObjectInfo

# A DICOM preamble, the file meta group, and the magic of every other format.
HEAD_BYTES: Final = 1024
# The least that is read of a member, for a tar is known by its first block; of a larger member a
# sixteenth, up to HEAD_BYTES.
MEMBER_HEAD_BYTES: Final = tarfile.BLOCKSIZE
# Kind of an archive by its first bytes -> the column `container`.
CONTAINERS: Final = {
    "zip": "zip",
    "tar": "tar",
    "gzip": "tar.gz",
    "bzip2": "tar.bz2",
    "xz": "tar.xz",
}


class Contents(NamedTuple):
    """The kind of an image file ("dicom", "png", "jpeg", "tiff") and its frames or pages."""

    kind: str
    frames: int


def read_head(info: ObjectInfo) -> bytes:
    """Read the first bytes of an object. Raises SliceError if it cannot hold an image."""
    if code := info.error_code or other_files.code_of_name(store.display(info.uri)):
        raise SliceError(code)
    if not info.size:
        raise SliceError("empty_file")
    return _read(info, 0, min(HEAD_BYTES, info.size))


def container_of(info: ObjectInfo, head: bytes) -> str:
    """Return the kind of archive that the object is, "" if it is not an archive.

    A zip may begin with anything, for instance with a program that unpacks it, so an object of
    unknown kind is looked at from its end too.
    """
    kind = decode.sniff(head)
    if not kind and zip_archive.has_end(zip_directory(info), size=info.size):
        return "zip"
    return CONTAINERS.get(kind, "")


def zip_directory(info: ObjectInfo) -> RangeFile:
    """Open a zip for its directory: each read is one request."""
    return RangeFile(info.uri, size=info.size, window=0, etag=info.etag)


def probe_object(info: ObjectInfo, head: bytes) -> Contents:
    """Probe an object that is not an archive."""
    kind = image_kind(head, name=info.uri)
    if info.size > MAX_OBJECT_BYTES:
        raise SliceError("too_large")
    file = RangeFile(info.uri, size=info.size, window=HEAD_BYTES, etag=info.etag, head=head)
    return _contents(kind, file, head)


def probe_zip_member(info: ObjectInfo, member: Member) -> Contents:
    """Probe a member of a zip: one small read, and the whole member if that is not enough."""

    def read(start: int, length: int) -> bytes:
        raw = _read(info, member.offset, member.packed_size)
        data = zip_archive.unpack(raw, size=member.size, method=member.method, crc32=member.crc32)
        return data[start : start + length]

    name_bytes = len(member.name.encode("utf-8", "surrogateescape"))
    length = zip_archive.LOCAL.size + name_bytes + _head_bytes(member.packed_size)
    if member.method == zipfile.ZIP_BZIP2:  # its blocks of up to 900 kB are unpacked as a whole
        length = member.packed_size
    raw = _read(info, member.offset, min(length, member.packed_size))
    head = zip_archive.unpack_head(raw, method=member.method, size=HEAD_BYTES)
    file = RangeFile(info.uri, size=member.size, window=member.size, head=head, read=read)
    return _contents(image_kind(head, name=member.name), file, head)


def open_tar(info: ObjectInfo, container: str) -> BinaryIO:
    """Open a tar, compressed or not, as a file over ranged reads."""
    if container != "tar":
        return tar_archive.open_solid(info.uri, container=container, size=info.size, etag=info.etag)
    # One request takes the next header and the head of its member.
    window = 1 + tarfile.BLOCKSIZE + HEAD_BYTES
    return cast(BinaryIO, RangeFile(info.uri, size=info.size, window=window, etag=info.etag))


def probe_tar_member(tar: BinaryIO, member: Member) -> Contents:
    """Probe the member of a tar whose data begin at the position of `tar`."""

    def read(start: int, length: int) -> bytes:
        tar.seek(member.offset + start)
        return tar.read(length)

    head = tar.read(min(_head_bytes(member.size), member.size))
    file = RangeFile("", size=member.size, window=HEAD_BYTES, head=head, read=read)
    return _contents(image_kind(head, name=member.name), file, head)


def image_kind(head: bytes, *, name: str) -> str:
    """Return the kind of image file. Raises SliceError for an archive or another format."""
    kind = decode.sniff(head)
    if kind in CONTAINERS:
        raise SliceError("archive_depth")
    if not kind:
        raise SliceError(other_files.code_of_content(name, head))
    return kind


def _read(info: ObjectInfo, start: int, length: int) -> bytes:
    return store.read_range(info.uri, start=start, length=length, etag=info.etag)


def _contents(kind: str, file: RangeFile, head: bytes) -> Contents:
    return Contents(kind, decode.frame_count(cast(BinaryIO, file), kind=kind, head=head))


def _head_bytes(size: int) -> int:
    """Return how much of a member to read, so that probing costs a small part of its size."""
    return max(MEMBER_HEAD_BYTES, min(HEAD_BYTES, size // 16))
