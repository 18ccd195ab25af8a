"""Decoders of compressed DICOM frames.

A codestream becomes the integers that it stores, or a SliceError. Each transfer syntax has exactly
one decoder. The size in the codestream is checked first, because decoders allocate by it (60000 x
60000 aborts some of them) and most of them return a full image for half a stream.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from cctmn.errors import SliceError

# Transfer syntax -> family, DICOM PS3.5 annex A.4. 1.2.840.10008.1.2.4.53 (JPEG process 6/8) and
# the other retired ones have no decoder here.
FAMILY: Final[dict[str, str]] = {
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.57": "jpeg",
    "1.2.840.10008.1.2.4.70": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2k",
    "1.2.840.10008.1.2.4.91": "jpeg2k",
    "1.2.840.10008.1.2.4.201": "jpeg2k",
    "1.2.840.10008.1.2.4.202": "jpeg2k",
    "1.2.840.10008.1.2.4.203": "jpeg2k",
    "1.2.840.10008.1.2.4.110": "jpegxl",
    "1.2.840.10008.1.2.4.111": "jpegxl",
    "1.2.840.10008.1.2.4.112": "jpegxl",
    "1.2.840.10008.1.2.5": "rle",
}
# Syntaxes that may lose. 91, 112 and 203 may also be lossless; the header alone cannot tell.
LOSSY: Final = frozenset(
    f"1.2.840.10008.1.2.4.{n}" for n in ("50", "51", "81", "91", "111", "112", "203")
)

# JPEG frame headers (ISO 10918-1 table B.1 without DHT, JPG and DAC) and SOF55 of JPEG-LS.
_SOF: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_SOS: Final = 0xDA
_END: Final = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_JP2_SIGNATURE: Final = b"\x00\x00\x00\x0cjP  "
_RLE_HEADER_BYTES: Final = 64  # PS3.5 G.5
_RLE_PAD_BYTES: Final = 2  # padding to an even length may decode to a byte or two


def decode_frame(
    stream: bytes, *, syntax: str, rows: int, cols: int, bits_allocated: int
) -> npt.NDArray[Any]:
    """Return rows x cols stored values, not yet masked to BitsStored."""
    family = FAMILY[syntax]
    if family == "rle":
        return _decode_rle(stream, rows=rows, cols=cols, bits_allocated=bits_allocated)
    if family == "jpegxl":
        return _decode_jpegxl(stream, rows=rows, cols=cols, bits_allocated=bits_allocated)
    if family == "jpeg2k":
        stream = _unwrap_jp2(stream)
        size = _siz(stream)
    else:
        size = jpeg_size(stream)
    if size[2] != 1:
        raise SliceError("color")
    if size != (rows, cols, 1):
        raise SliceError("pixel_length_mismatch")
    if not stream.rstrip(b"\x00\xff").endswith(_END):
        raise SliceError("truncated")
    try:
        if family == "jpeg2k":
            # OpenJPEG for HTJ2K too: imagecodecs.htj2k_decode is 2 ms faster, but gives a picture
            # where OpenJPH failed, and tells stderr alone.
            pixels = imagecodecs.jpeg2k_decode(stream, numthreads=1)
        elif family == "jpegls":
            pixels = imagecodecs.jpegls_decode(stream)
        else:
            pixels = imagecodecs.jpeg8_decode(stream)  # libjpeg-turbo: 8, 12 bits and lossless
    except Exception:  # noqa: BLE001  # each codec has errors of its own
        raise SliceError("decode_error") from None
    return _checked(pixels, rows=rows, cols=cols)


def jpeg_size(stream: bytes) -> tuple[int, int, int]:
    """Return rows, cols and components from the frame header of a JPEG or JPEG-LS stream."""
    if stream[:2] != b"\xff\xd8":
        raise SliceError("decode_error")
    at = 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            raise SliceError("decode_error")
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _SOF:
            if at + 10 > len(stream):
                break
            rows, cols, components = struct.unpack_from(">HHB", stream, at + 5)
            return rows, cols, components
        if marker == _SOS:
            raise SliceError("decode_error")
        at += 2 + int(struct.unpack_from(">H", stream, at + 2)[0])
    raise SliceError("truncated")


def _siz(stream: bytes) -> tuple[int, int, int]:
    """Return rows, cols and components from the SIZ marker of a JPEG 2000 codestream."""
    if len(stream) < 42:
        raise SliceError("truncated")
    if stream[:4] != b"\xff\x4f\xff\x51":
        raise SliceError("decode_error")
    x1, y1, x0, y0 = struct.unpack_from(">4I", stream, 8)
    (components,) = struct.unpack_from(">H", stream, 40)
    return y1 - y0, x1 - x0, components


def _unwrap_jp2(stream: bytes) -> bytes:
    """Return the codestream inside a JP2 file, which the standard forbids and some writers send."""
    if not stream.startswith(_JP2_SIGNATURE):
        return stream
    at = 0
    while at + 8 <= len(stream):
        length, kind = struct.unpack_from(">I4s", stream, at)
        if kind == b"jp2c":
            return stream[at + 8 : at + length if length else len(stream)]
        if length < 8:  # 0 runs to the end, 1 means 64 bits: neither holds before the codestream
            break
        at += length
    raise SliceError("decode_error")


def _decode_rle(stream: bytes, *, rows: int, cols: int, bits_allocated: int) -> npt.NDArray[Any]:
    """Decode one PackBits segment per byte of a pixel, the highest byte first (PS3.5 G.2).

    imagecodecs.dicomrle_decode would do it at once, but it reads behind the end for a wild segment
    offset, and fills up a segment that is cut between two runs.
    """
    if len(stream) <= _RLE_HEADER_BYTES:
        raise SliceError("truncated")
    count, *starts = struct.unpack_from("<16I", stream)
    if count != bits_allocated // 8:
        raise SliceError("decode_error")
    ends = [*starts[1:count], len(stream)]
    planes = np.empty((rows * cols, count), np.uint8)
    for index, (start, end) in enumerate(zip(starts, ends, strict=False)):
        if not _RLE_HEADER_BYTES <= start < end <= len(stream):
            raise SliceError("decode_error")
        try:
            plane = imagecodecs.packbits_decode(stream[start:end])
        except Exception:  # noqa: BLE001
            raise SliceError("decode_error") from None
        if len(plane) < rows * cols:
            raise SliceError("truncated")
        if len(plane) > rows * cols + _RLE_PAD_BYTES:
            raise SliceError("pixel_length_mismatch")
        planes[:, count - 1 - index] = np.frombuffer(plane, np.uint8, count=rows * cols)
    return planes.view(f"<u{count}").reshape(rows, cols)


def _decode_jpegxl(stream: bytes, *, rows: int, cols: int, bits_allocated: int) -> npt.NDArray[Any]:
    # A given array makes the decoder compare its size with the stream's before it decodes.
    out = np.empty((rows, cols), f"u{bits_allocated // 8}")
    try:
        return _checked(imagecodecs.jpegxl_decode(stream, out=out), rows=rows, cols=cols)
    except Exception:  # noqa: BLE001
        raise SliceError("decode_error") from None


def _checked(pixels: npt.NDArray[Any], *, rows: int, cols: int) -> npt.NDArray[Any]:
    if pixels.shape != (rows, cols) or pixels.dtype.kind not in "ui":
        raise SliceError("decode_error")
    return pixels
