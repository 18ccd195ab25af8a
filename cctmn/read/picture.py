"""From PNG, JPEG and TIFF files to slices of 8-bit grey values.

Every frame or page becomes a slice or a SliceError. Pictures have no Hounsfield units: the stored
grey values are scored, so a picture without a known scale (16 bits without the full range, floats,
colour) is refused. Size and end of the file are checked before Pillow decodes anything, because
Pillow's own limits are too wide.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from cctmn.errors import SliceError
from cctmn.read.codestream import jpeg_size
from cctmn.read.geometry import Turn
from cctmn.read.quality import check_size
from cctmn.read.slice import Slice

_ORIENTATION: Final = 274  # EXIF and TIFF tag
# EXIF 2.32, tag 274: where row 0 and column 0 of the stored image belong.
_EXIF_TURNS: Final = {
    2: Turn(flip_cols=True),
    3: Turn(flip_rows=True, flip_cols=True),
    4: Turn(flip_rows=True),
    5: Turn(transpose=True),
    6: Turn(transpose=True, flip_cols=True),
    7: Turn(transpose=True, flip_rows=True, flip_cols=True),
    8: Turn(transpose=True, flip_rows=True),
}
_TIFF_BITS: Final = 258
_TIFF_COMPRESSION: Final = 259
_TIFF_SAMPLE_FORMAT: Final = 339
_TIFF_JPEG: Final = (6, 7)
_TIFF_FLOAT: Final = 3

_PNG_SIGNATURE_BYTES: Final = 8
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# First column and row and their steps in the seven passes of an interlaced PNG.
_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_APNG_FRAME_BYTES: Final = 38  # one fcTL chunk, so no frame takes less
_MAX_PAGES: Final = 10_000

# Channels of a grey picture differ by less after chroma subsampling; a coloured overlay as small as
# 16 x 16 px in 512 x 512 is more than one in a thousand.
_MAX_CHANNEL_DIFFERENCE: Final = 16
_MAX_COLOR_FRACTION: Final = 1e-3

# A byte after FF in entropy-coded data: 00 is a stuffed zero, D0..D7 restarts, FF fills.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_EOI: Final = 0xD9


def page_count(file: BinaryIO, *, kind: str) -> int:
    """Return the number of frames of a PNG or pages of a TIFF; 1 for a JPEG."""
    if kind == "png":
        return _apng_frames(file)
    return len(_Tiff(file).pages) if kind == "tiff" else 1


class PictureImage:
    """A picture whose container is whole, and whose frames can be decoded one by one."""

    def __init__(self, data: bytes, *, kind: str, flags: set[str]) -> None:
        self._file = io.BytesIO(data)
        self._kind = kind
        self._tiff = _Tiff(self._file) if kind == "tiff" else None
        self._opened: Image.Image | None = None  # of a PNG: each frame is drawn over those before
        self.frames = len(self._tiff.pages) if self._tiff else page_count(self._file, kind=kind)
        self._flags = flags | ({"multiframe"} if self.frames > 1 else set())

    def frame(self, index: int) -> Slice:
        """Return frame or page `index`, from 0."""
        try:
            image = self._seek(index)
            check_size(image.height, image.width)
            tiff_flags = _check_tiff(image) if self._tiff else set()
            turn = _EXIF_TURNS.get(image.getexif().get(_ORIENTATION, 1), Turn())
            image.load()  # only now are pixels decoded
        except Image.DecompressionBombError:  # for a TIFF, whose size only Pillow has read
            raise SliceError("too_large") from None
        except OSError as error:
            self._opened = None
            # Pillow has one class for both; its text is read here and goes no further.
            code = "truncated" if "truncated" in str(error) else "decode_error"
            raise SliceError(code) from None
        pixels, grey_flags = _to_grey(image)
        if not self._tiff:  # Pillow turns a TIFF itself
            pixels = turn.apply(pixels)
        rows, cols = pixels.shape[::-1] if turn.transpose else pixels.shape
        turn_flags = {"orientation"} if turn != Turn() else set()
        return Slice(
            # Pillow lends its own read-only memory, which PyTorch does not take
            pixels=np.require(pixels, np.uint8, ["C", "W"]),
            unit="grey8",
            turn=turn,
            rows=rows,
            cols=cols,
            flags=frozenset(self._flags | tiff_flags | grey_flags | turn_flags),
        )

    def _seek(self, index: int) -> Image.Image:
        """Return Pillow's image at this frame, without a walk over all frames before it."""
        if self._tiff:
            self._tiff.make_first(index)
            return Image.open(self._file, formats=["TIFF"])
        if self._opened is None:
            self._opened = Image.open(self._file, formats=[self._kind.upper()])
        self._opened.seek(index)
        return self._opened


def open_picture(data: bytes, *, kind: str) -> PictureImage:
    """Check the container: its size, its depth and that it is whole."""
    flags = set()
    if kind == "png":
        end = _check_png(data)
    elif kind == "jpeg":
        end = _check_jpeg(data)
        flags.add("lossy")
    else:
        end = len(data)  # a TIFF may hold its pages anywhere
    if len(data) > end:
        flags.add("trailing_data")
    return PictureImage(data, kind=kind, flags=flags)


def _check_png(data: bytes) -> int:
    """Check size, depth and every checksum; return where IEND ends."""
    if len(data) < _PNG_SIGNATURE_BYTES + 25:
        raise SliceError("truncated")
    cols, rows, depth, color = struct.unpack_from(">IIBB", data, _PNG_SIGNATURE_BYTES + 8)
    check_size(rows, cols)
    if depth == 16 and color != 0:
        raise SliceError("ambiguous_depth")
    at = _PNG_SIGNATURE_BYTES
    packed = []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise SliceError("corrupt")
        if kind == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        if kind == b"IEND":
            _check_png_rows(b"".join(packed), header=data[_PNG_SIGNATURE_BYTES + 8 :])
            return end
        at = end
    raise SliceError("truncated")


def _check_png_rows(packed: bytes, *, header: bytes) -> None:
    """Check that no packed row is missing; Pillow would leave it black and report nothing."""
    cols, rows, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    if color not in _PNG_CHANNELS or interlaced > 1:
        raise SliceError("corrupt")
    wanted = 0
    for col, row, col_step, row_step in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        width, height = -(-(cols - col) // col_step), -(-(rows - row) // row_step)
        if width > 0 and height > 0:  # each row has a byte for its filter
            wanted += height * (1 + -(-width * depth * _PNG_CHANNELS[color] // 8))
    try:
        unpacked = zlib.decompressobj().decompress(packed, wanted)
    except zlib.error:
        raise SliceError("corrupt") from None
    if len(unpacked) < wanted:
        raise SliceError("truncated")


def _check_jpeg(data: bytes) -> int:
    """Check the size of a JPEG and return where its EOI ends.

    Scans are walked marker by marker: a thumbnail in the EXIF block has an EOI of its own.
    """
    rows, cols, _ = jpeg_size(data)
    check_size(rows, cols)
    at = 2
    while found := _MARKER.search(data, at):
        marker = data[found.start() + 1]
        if marker == _EOI:
            return found.end()
        if found.end() + 2 > len(data):
            break
        at = found.end() + int(struct.unpack_from(">H", data, found.end())[0])
    raise SliceError("truncated")


def _check_tiff(page: Image.Image) -> set[str]:
    """Refuse samples of more than 8 bits; return the flags that follow from the tags."""
    tags: Any = page.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(_TIFF_BITS, (1,)))
    if bits > 16 or _TIFF_FLOAT in tags.get(_TIFF_SAMPLE_FORMAT, (1,)):
        raise SliceError("unsupported_bits")
    if bits > 8:
        raise SliceError("ambiguous_depth")
    return {"lossy"} if tags.get(_TIFF_COMPRESSION) in _TIFF_JPEG else set()


def _to_grey(image: Image.Image) -> tuple[npt.NDArray[np.uint8], set[str]]:
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image)), set()
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), set()
    flags = set()
    if image.mode in ("RGBA", "LA", "PA"):
        low, _ = image.getchannel("A").getextrema()
        if low != 255:
            flags.add("alpha")
    if image.mode == "LA":
        return np.asarray(image.getchannel("L")), flags
    rgb = image.convert("RGB")  # drops alpha and composites nothing
    red, green, blue = np.moveaxis(np.asarray(rgb), 2, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    difference = highest - np.minimum(np.minimum(red, green), blue)
    colored = np.count_nonzero(difference > _MAX_CHANNEL_DIFFERENCE)
    if colored > _MAX_COLOR_FRACTION * difference.size:
        raise SliceError("color")
    if difference.any():  # three equal channels are grey, however they are stored
        flags.add("color")
    return np.asarray(rgb.convert("L")), flags


def _from_16_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale a 16-bit picture that uses its full range; any other has no known scale.

    Wrapped negative HU reach 65535 as well, but leave the middle of the range empty.
    """
    middle = np.count_nonzero((pixels >= 0x4000) & (pixels < 0xC000))
    if pixels.max() < 0xFF00 or middle < 0.01 * pixels.size:
        raise SliceError("ambiguous_depth")
    return (pixels // 257).astype(np.uint8)


def _apng_frames(file: BinaryIO) -> int:
    """Return the frames of an animated PNG, and a still default image as one more."""
    size = file.seek(0, io.SEEK_END)
    at, frames, animated_default = _PNG_SIGNATURE_BYTES, 0, False
    while at + 12 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"acTL":
            (frames,) = struct.unpack(">I", file.read(4))
        elif kind == b"fcTL":
            animated_default = True
        elif kind == b"IDAT":
            break
        at += 12 + length
    if not 0 < frames <= size // _APNG_FRAME_BYTES:
        return 1
    return frames if animated_default else frames + 1


class _Tiff:
    """The directories of a TIFF, one per page, each of which names the next."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack_from(f"{order}H", head, 2)[0] == 43  # BigTIFF: 64-bit offsets
        self._first = 8 if big else 4  # where the offset of the first directory stands
        self._offset = struct.Struct(order + ("Q" if big else "I"))
        self._count = struct.Struct(order + ("Q" if big else "H"))
        self._entry_bytes = 20 if big else 12
        self.pages = list(self._walk())

    def make_first(self, page: int) -> None:
        """Write into the file's head that this page is the first."""
        self._file.seek(self._first)
        self._file.write(self._offset.pack(self.pages[page]))
        self._file.seek(0)

    def _walk(self) -> Iterator[int]:
        """Yield the offset of every directory; a loop or a wild offset ends the walk."""
        at = self._read(self._offset, self._first)
        seen: set[int] = set()
        while at and at not in seen and len(seen) < _MAX_PAGES:
            if (count := self._read(self._count, at)) is None:
                return
            seen.add(at)
            yield at
            at = self._read(self._offset, at + self._count.size + count * self._entry_bytes)

    def _read(self, number: struct.Struct, at: int) -> int | None:
        """Return the number at this offset, None beyond the end of the file."""
        self._file.seek(at)
        data = self._file.read(number.size)
        return number.unpack(data)[0] if len(data) == number.size else None
