"""From the bytes of an image file to slices, for every format.

DICOM, PNG, JPEG and TIFF are recognised by content, never by name. An `ImageFile` decodes its
frames to slices. Every failure becomes a SliceError with a code, because the text of a library's
exception may contain header values.
"""

from __future__ import annotations

import re
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from cctmn.errors import CctmnError, SliceError
from cctmn.read import dicom, picture
from cctmn.read.geometry import Turn
from cctmn.read.slice import Slice

__all__ = ["ImageFile", "Slice", "Turn", "frame_count", "open_image", "sniff"]

_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),  # BigTIFF
    (b"MM\x00+", "tiff"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),  # no member
    (b"PK\x07\x08PK\x03\x04", "zip"),  # written to be split
    (b"PK00PK\x03\x04", "zip"),  # written to be split, and fitted into one file
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
)
# A data set without preamble starts with an element of group 0002 or 0008, little endian: a VR
# (explicit) or the upper bytes of a small length (implicit) tell it from chance.
_HEADLESS: Final = re.compile(rb"[\x02\x08]\x00.\x00(?:[A-Z][A-Z]|..\x00\x00)", re.DOTALL)


@dataclass(frozen=True)
class ImageFile:
    """An opened image; its frames fail one by one."""

    image: dicom.DicomImage | picture.PictureImage

    @property
    def frames(self) -> int:
        """Number of frames or pages."""
        return self.image.frames

    def frame(self, index: int) -> Slice:
        """Decode frame `index`, from 0."""
        with _coded():
            if not 0 <= index < self.frames:
                raise SliceError("truncated")
            return self.image.frame(index)


def sniff(head: bytes) -> str:
    """Return the kind of a file by its first bytes, "" if it is none that can be read.

    "DICM" at byte 128 is looked for first, because the preamble before it may imitate any format.
    """
    if head[128:132] == b"DICM":
        return "dicom"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if _is_tar(head):
        return "tar"
    return "dicom" if _HEADLESS.match(head) else ""


def _is_tar(head: bytes) -> bool:
    """Return whether the first block is a tar header with a right checksum, of any tar version."""
    block, stated = head[: tarfile.BLOCKSIZE], head[148:156].strip(b" \0")
    if len(block) < tarfile.BLOCKSIZE or not re.fullmatch(rb"[0-7]{1,7}", stated):
        return False
    # The checksum counts as blanks; some old writers summed signed bytes.
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(rest) - 256 * sum(byte > 127 for byte in rest)
    return int(stated, 8) in (sum(rest), signed)


def frame_count(file: BinaryIO, *, kind: str, head: bytes = b"") -> int:
    """Return the number of frames or pages, from the head and at most a few ranged reads.

    A damaged object counts as one frame, and decoding it gives the code. Errors of the storage are
    raised, and a container that cannot be read on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "dicom":
                return dicom.frame_count(file, head=head)
            return picture.page_count(file, kind=kind) or 1
    except CctmnError:
        raise
    except Exception:  # noqa: BLE001
        return 1


def open_image(data: bytes | memoryview) -> ImageFile:
    """Check the header and the container of an image; its pixels are decoded by frame()."""
    with _coded():
        content = bytes(data)
        if not content:
            raise SliceError("empty_file")
        kind = sniff(content[:512])
        if kind == "dicom":
            return ImageFile(dicom.open_dicom(content))
        if kind in ("png", "jpeg", "tiff"):
            return ImageFile(picture.open_picture(content, kind=kind))
        raise SliceError("unsupported_format")


@contextmanager
def _coded() -> Iterator[None]:
    """Turn whatever the block raises into a SliceError, which has a code and no text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SliceError as error:
        raise SliceError(error.code) from None
    except MemoryError:
        raise SliceError("decoder_died") from None
    except Exception:  # noqa: BLE001
        raise SliceError("corrupt") from None
