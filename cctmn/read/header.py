"""From the bytes of a DICOM object, or its first bytes, to the elements that scoring needs.

Only the elements that are named here are parsed, so names, dates and private elements never become
text in memory. Of free text, `acquisition` keeps known words only. The pixel element is located
without pydicom, which drops a truncated one with no more than a warning.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pydicom.config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from cctmn.errors import SliceError

# pydicom echoes header values in its warnings, its log and its exceptions.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").disabled = True

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
NATIVE: Final = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED})

# 256 slices of 512 x 512 x 16 bit; inflating takes twice this, and half a second.
MAX_INFLATED_BYTES: Final = 128 << 20

_FLOAT_PIXELS: Final = (0x7FE00008, 0x7FE00009)
PIXEL_TAGS: Final = frozenset({*_FLOAT_PIXELS, 0x7FE00010})
_AFTER_PIXELS: Final = (0xFFFCFFFC, 0xFFFAFFFA)  # trailing padding, digital signatures
_UNDEFINED: Final = 0xFFFFFFFF

_META_TAGS: Final = [0x00020002, 0x00020010]
_TAGS: Final = [
    tag
    for tag in map(
        tag_for_keyword,
        "ImageType SOPClassUID Modality StudyInstanceUID SeriesInstanceUID PatientID "  # noqa: SIM905
        "ImagePositionPatient ImageOrientationPatient PixelSpacing SamplesPerPixel "
        "PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit "
        "PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope "
        "RescaleIntercept RescaleType LossyImageCompression ModalityLUTSequence "
        "LargestImagePixelValue VolumeBasedCalculationTechnique "
        "Manufacturer ManufacturerModelName ConvolutionKernel SliceThickness KVP InstanceNumber "
        "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence "
        "ExtendedOffsetTable ExtendedOffsetTableLengths".split(),
    )
    if tag is not None
]


@dataclass(frozen=True)
class Header:
    """What was read of an object, and where reading stopped."""

    dataset: Dataset
    syntax: str
    media_class: str  # SOP class of the file meta, "" if there is none
    body: bytes  # the bytes the data set was read from (inflated if it was deflated)
    end: int  # where reading stopped in body
    stopped: bool  # the element to stop at was reached
    inflated: bool  # nothing is left to inflate


def media_class_of(head: bytes) -> str:
    """Return the SOP class of the file meta in an object's first bytes, "" if there is none."""
    return text_of(_read_meta(io.BytesIO(head)), "MediaStorageSOPClassUID")


def _read_meta(source: io.BytesIO) -> Dataset:
    source.seek(132 if source.getvalue()[128:132] == b"DICM" else 0)
    return read_dataset(
        source,
        False,  # the file meta is explicit little endian, PS3.10 7.1
        True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,  # noqa: ARG005
        specific_tags=list(_META_TAGS),
    )


def read_header(data: bytes, *, stop: Callable[[int], bool], max_inflated_bytes: int) -> Header:
    """Read the file meta and the data set up to the first element for which stop(tag) holds."""
    source = io.BytesIO(data)
    meta = _read_meta(source)
    # Without a transfer syntax pydicom decides by the first element: explicit or implicit.
    syntax = text_of(meta, "TransferSyntaxUID") or EXPLICIT
    body, inflated = data, True
    if syntax == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        body = inflater.decompress(data[source.tell() :], max_inflated_bytes)
        inflated = inflater.eof
        source = io.BytesIO(body)
    stopped = False

    def stop_when(tag: int, vr: str | None, length: int) -> bool:  # noqa: ARG001
        nonlocal stopped
        stopped = stop(tag)
        return stopped

    dataset = read_dataset(
        source,
        syntax == IMPLICIT,
        syntax != BIG_ENDIAN,
        stop_when=stop_when,
        specific_tags=list(_TAGS),
    )
    return Header(
        dataset=dataset,
        syntax=syntax,
        media_class=text_of(meta, "MediaStorageSOPClassUID"),
        body=body,
        end=source.tell(),
        stopped=stopped,
        inflated=inflated,
    )


def sop_class_of(header: Header) -> str:
    """Return the SOP class of the data set, else of the file meta, else ""."""
    return text_of(header.dataset, "SOPClassUID") or header.media_class


def pixel_element(header: Header) -> tuple[bytes, bool]:
    """Return the value of the pixel element, and whether bytes of no meaning follow it."""
    body, at = header.body, header.end
    order = ">" if header.syntax == BIG_ENDIAN else "<"
    group, element = struct.unpack_from(f"{order}2H", body, at)
    if (group << 16 | element) in _FLOAT_PIXELS:
        raise SliceError("unsupported_bits")
    # An implicit length is even, so it cannot look like one of these.
    explicit = body[at + 4 : at + 6] in (b"OB", b"OW", b"UN")
    at += 8 if explicit else 4
    if at + 4 > len(body):
        raise SliceError("truncated")
    (length,) = struct.unpack_from(f"{order}I", body, at)
    at += 4
    if (length == _UNDEFINED) == (header.syntax in NATIVE):
        raise SliceError("decode_error")
    end = _items_end(body, at) if length == _UNDEFINED else at + length
    if end > len(body):
        raise SliceError("truncated")
    trailing = len(body) - end > 1
    if trailing and end + 4 <= len(body):
        group, element = struct.unpack_from(f"{order}2H", body, end)
        trailing = (group << 16 | element) not in _AFTER_PIXELS
    return body[at:end], trailing


def _items_end(body: bytes, at: int) -> int:
    """Return the offset behind the sequence delimiter of encapsulated pixel data."""
    while at + 8 <= len(body):
        group, element, length = struct.unpack_from("<2HI", body, at)
        if (group, element) == (0xFFFE, 0xE0DD):
            return at + 8
        if (group, element) != (0xFFFE, 0xE000):
            raise SliceError("corrupt")
        at += 8 + length
    raise SliceError("truncated")


def functional_groups(dataset: Dataset, index: int) -> list[Dataset]:
    """Return the functional groups of a frame: its own, then those that all frames share."""
    groups = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame:
        groups.append(per_frame[index])
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared:
        groups.append(shared[0])
    return groups


def find_macro(groups: list[Dataset], sequence: str, root: Dataset) -> Dataset:
    """Return the macro of the first group that has it; a classic object is its own macro."""
    for group in groups:
        if items := group.get(sequence):
            return items[0]
    return root


def values_of(dataset: Dataset, keyword: str) -> list[Any]:
    """Return the values of an element, none if it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, MultiValue)) else [value]


def is_absent(dataset: Dataset, keyword: str) -> bool:
    """Return whether an element is absent or empty; a damaged value is neither."""
    try:
        return not values_of(dataset, keyword)
    except ValueError:
        return False  # there, but not a number


def text_of(dataset: Dataset, keyword: str) -> str:
    """Return the text of an element, "" if it is absent."""
    return "\\".join(map(str, values_of(dataset, keyword))).strip(" \0")


def integer_of(dataset: Dataset, keyword: str) -> int | None:
    """Return the one integer of an element, None if it does not hold one."""
    try:
        values = values_of(dataset, keyword)
        return int(values[0]) if len(values) == 1 else None
    except (TypeError, ValueError, OverflowError):
        return None


def numbers_of(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return `count` finite numbers, or None if the element does not hold that."""
    try:
        numbers = tuple(float(value) for value in values_of(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
