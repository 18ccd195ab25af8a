"""From the bytes of one DICOM object to its CT slices in Hounsfield units.

Every frame becomes a slice in the usual axial display, or a SliceError. The checks run in a fixed
order (object, kind of image, geometry, size, pixels, values), so that a file always gets the same
code.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import AllTransferSyntaxes

from cctmn import acquisition
from cctmn.acquisition import Acquisition
from cctmn.errors import SliceError
from cctmn.read import codestream, image_type
from cctmn.read.geometry import Turn
from cctmn.read.header import (
    BIG_ENDIAN,
    MAX_INFLATED_BYTES,
    NATIVE,
    PIXEL_TAGS,
    Header,
    find_macro,
    functional_groups,
    integer_of,
    is_absent,
    media_class_of,
    numbers_of,
    pixel_element,
    read_header,
    sop_class_of,
    text_of,
)
from cctmn.read.quality import AIR_HU, LOWEST_HU, check_hu, check_size
from cctmn.read.slice import Slice

_CT: Final = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED: Final = frozenset({_CT + ".1", _CT + ".2"})  # Enhanced and Legacy Converted Enhanced CT
_DICOMDIR: Final = "1.2.840.10008.1.3.10"

# Rescale Type (PS3.3 C.11.1.1.2) of maps. Anything else counts as HU: "US", "Houndsfield Unit" ...
_NOT_HU: Final = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"})

# Of direction cosines: 1 % for those that are rounded to two digits, and a little for binary ones.
_MAX_LENGTH_ERROR: Final = 0.01001
_MIN_AXIAL_NZ: Final = 0.9  # 25 degrees, more than any gantry tilts
_MIN_STRAIGHT_NZ: Final = math.cos(math.radians(5))
_MAX_SLOPE: Final = 1e5
_MAX_INTERCEPT: Final = 1e5  # the same bound; 16 bits and a slope of 1 need 65536
# Beyond these the header is wrong: slabs are up to some 100 mm, tubes have up to 150 kV.
_MAX_THICKNESS_MM: Final = 500.0
_MAX_KV: Final = 500.0
# Up to (0028,0008), once cheaply; enhanced objects may list their sources before it.
_HEAD_BYTES: Final = (64 << 10, 1 << 20)
# No frame with its functional groups and fragment takes fewer bytes, so a larger claim is a lie.
_MIN_BYTES_PER_FRAME: Final = 128
_FRAMES_TAG: Final = 0x00280008


def frame_count(file: BinaryIO, *, head: bytes) -> int:
    """Return the number of frames; 1 for whatever decoding will refuse.

    An object of the plain CT class has one frame. Its class is in `head`, so most objects are read
    no further.
    """
    if media_class_of(head) == _CT:
        return 1
    size = file.seek(0, io.SEEK_END)
    for limit in _HEAD_BYTES:
        file.seek(0)
        header = read_header(
            file.read(limit), stop=lambda tag: tag > _FRAMES_TAG, max_inflated_bytes=limit
        )
        if header.stopped or limit >= size:
            break
    if sop_class_of(header) not in ("", _CT, *_ENHANCED):
        return 1
    frames = integer_of(header.dataset, "NumberOfFrames") or 1
    return frames if 1 <= frames <= max(1, size // _MIN_BYTES_PER_FRAME) else 1


@dataclass(frozen=True)
class DicomImage:
    """A checked CT object whose frames can be decoded one by one."""

    header: Header
    frames: int
    pixels: bytes  # value of the pixel element
    flags: frozenset[str]

    def frame(self, index: int) -> Slice:
        """Return frame `index`, from 0."""
        dataset = self.header.dataset
        groups = functional_groups(dataset, index)
        frame_type = find_macro(groups, "CTImageFrameTypeSequence", Dataset())
        type_flags = image_type.check_frame(frame_type, dataset)
        turn, flags = _orientation(find_macro(groups, "PlaneOrientationSequence", dataset))
        rows, cols = _rows_cols(dataset)
        stored, bit_flags = self._stored(index, rows=rows, cols=cols)
        transform = find_macro(groups, "PixelValueTransformationSequence", dataset)
        hu, rescale_flags = _to_hu(stored, dataset, transform)
        value_flags = check_hu(hu)
        spacing = numbers_of(
            find_macro(groups, "PixelMeasuresSequence", dataset), "PixelSpacing", 2
        )
        position = numbers_of(
            find_macro(groups, "PlanePositionSequence", dataset), "ImagePositionPatient", 3
        )
        return Slice(
            pixels=turn.apply(hu),
            unit="hu",
            turn=turn,
            rows=rows,
            cols=cols,
            spacing_row_mm=spacing[0] if spacing else None,
            spacing_col_mm=spacing[1] if spacing else None,
            slice_z_mm=position[2] if position else None,
            study_uid=text_of(dataset, "StudyInstanceUID") or None,
            series_uid=text_of(dataset, "SeriesInstanceUID") or None,
            patient_id=text_of(dataset, "PatientID") or None,
            acquisition=self._acquisition(groups, frame_type),
            flags=self.flags | type_flags | flags | bit_flags | rescale_flags | value_flags,
        )

    def _acquisition(self, groups: list[Dataset], frame_type: Dataset) -> Acquisition:
        dataset = self.header.dataset
        measures = find_macro(groups, "PixelMeasuresSequence", dataset)
        beam = find_macro(groups, "CTXRayDetailsSequence", dataset)
        number = integer_of(dataset, "InstanceNumber")
        reconstruction = find_macro(groups, "CTReconstructionSequence", dataset)
        syntax = self.header.syntax
        return Acquisition(
            manufacturer=acquisition.manufacturer(text_of(dataset, "Manufacturer")),
            scanner_model=acquisition.scanner_model(text_of(dataset, "ManufacturerModelName")),
            kernel=acquisition.kernel(text_of(reconstruction, "ConvolutionKernel")),
            slice_thickness_mm=_positive(measures, "SliceThickness", at_most=_MAX_THICKNESS_MM),
            tube_voltage_kv=_positive(beam, "KVP", at_most=_MAX_KV),
            image_type=image_type.known_words(frame_type, dataset),
            transfer_syntax=syntax if syntax in AllTransferSyntaxes else acquisition.OTHER,
            instance_number=number if number is not None and abs(number) < 1 << 31 else None,
        )

    def _stored(
        self, index: int, *, rows: int, cols: int
    ) -> tuple[npt.NDArray[Any], frozenset[str]]:
        """Return the stored values of a frame, and flags of the bits around them."""
        dataset, syntax = self.header.dataset, self.header.syntax
        allocated, stored_bits, signed = _bits(dataset)
        if syntax in NATIVE:
            size = rows * cols * allocated // 8
            if len(self.pixels) < (index + 1) * size:
                raise SliceError("truncated")
            order = ">" if syntax == BIG_ENDIAN else "<"
            raw: npt.NDArray[Any] = np.frombuffer(
                self.pixels, f"{order}u{allocated // 8}", count=rows * cols, offset=index * size
            ).reshape(rows, cols)
        else:
            raw = codestream.decode_frame(
                self._fragments(index),
                syntax=syntax,
                rows=rows,
                cols=cols,
                bits_allocated=allocated,
            )
        values, high_bits = _values(raw, allocated, stored_bits, signed=signed)
        flags = {"high_bits"} if high_bits else set()
        largest = integer_of(dataset, "LargestImagePixelValue")
        if largest and not signed and int(values.max()) > largest and not _has_padding(dataset):
            flags.add("above_largest")
        return values, frozenset(flags)

    def _fragments(self, index: int) -> bytes:
        dataset = self.header.dataset
        offsets = None  # pydicom finds the basic offset table itself
        if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
            offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        try:
            return get_frame(
                self.pixels, index, extended_offsets=offsets, number_of_frames=self.frames
            )
        except ValueError:  # fewer fragments than frames
            raise SliceError("truncated") from None


def open_dicom(data: bytes) -> DicomImage:
    """Read the header, check all that holds for every frame and find the pixel element."""
    header = read_header(
        data,
        stop=PIXEL_TAGS.__contains__,
        max_inflated_bytes=MAX_INFLATED_BYTES,
    )
    dataset = header.dataset
    if not header.inflated:
        full = len(header.body) >= MAX_INFLATED_BYTES
        raise SliceError("too_large" if full else "truncated")
    sop_class = sop_class_of(header)
    if sop_class == _DICOMDIR:
        raise SliceError("dicomdir")
    modality = text_of(dataset, "Modality")
    if not sop_class and not modality:
        raise SliceError("not_ct_sop_class" if header.stopped else "no_pixel_data")
    if sop_class not in ("", _CT, *_ENHANCED):
        raise SliceError("not_ct_sop_class")
    if modality not in ("", "CT"):
        raise SliceError("wrong_modality")
    if not header.stopped:
        # An element that claims more bytes than there are leaves the reader behind the end.
        raise SliceError("truncated" if header.end > len(header.body) else "no_pixel_data")
    frames = integer_of(dataset, "NumberOfFrames") or 1
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames < 1 or (per_frame and len(per_frame) != frames):
        raise SliceError("corrupt")
    if frames == 1:  # several frames may differ, so each is judged by itself
        image_type.check_object(dataset)
        plane = find_macro(functional_groups(dataset, 0), "PlaneOrientationSequence", dataset)
        _orientation(plane)
    if (integer_of(dataset, "SamplesPerPixel") or 1) != 1:
        raise SliceError("color")
    photometric = text_of(dataset, "PhotometricInterpretation")
    if photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise SliceError("color")
    flags = {"monochrome1"} if photometric == "MONOCHROME1" else set()
    allocated, _, _ = _bits(dataset)
    rows, cols = _rows_cols(dataset)
    check_size(rows, cols)
    if allocated == 8 and header.syntax == BIG_ENDIAN:  # bytes may be swapped in pairs
        raise SliceError("unsupported_bits")
    if header.syntax not in NATIVE and header.syntax not in codestream.FAMILY:
        raise SliceError("unsupported_transfer_syntax")
    pixels, rest = pixel_element(header)
    if header.syntax in NATIVE:
        excess = len(pixels) - rows * cols * allocated // 8 * frames
        # One byte evens the length and writers pad to a sector; more than a row is another image.
        if excess > cols * allocated // 8:
            raise SliceError("pixel_length_mismatch")
        if excess > 1:
            flags.add("trailing_data")
    if rest:
        flags.add("trailing_data")
    if frames > 1:
        flags.add("multiframe")
    if header.syntax in codestream.LOSSY or text_of(dataset, "LossyImageCompression") == "01":
        flags.add("lossy")
    return DicomImage(header=header, frames=frames, pixels=pixels, flags=frozenset(flags))


def _orientation(plane: Dataset) -> tuple[Turn, frozenset[str]]:
    """Return how to turn the stored image to anterior on top, patient right on the left.

    The direction cosines point along a row (to the next column) and along a column, in mm to the
    patient's left (x), back (y) and head (z): PS3.3 C.7.6.2.1.1.
    """
    cosines = numbers_of(plane, "ImageOrientationPatient", 6)
    if cosines is None:
        return Turn(), frozenset({"orientation"})
    along_row, along_col = cosines[:3], cosines[3:]
    normal = _cross(along_row, along_col)
    # What is further off is no orientation at all.
    lengths = [math.hypot(*each) for each in (along_row, along_col, normal)]
    if not all(abs(length - 1) <= _MAX_LENGTH_ERROR for length in lengths):
        return Turn(), frozenset({"orientation"})
    tilt_nz = abs(normal[2])
    if tilt_nz < _MIN_AXIAL_NZ:
        raise SliceError("not_axial")
    transpose = bool(abs(along_row[0]) < abs(along_row[1]))
    if transpose:
        along_row, along_col = along_col, along_row
    turn = Turn(
        transpose=transpose, flip_rows=bool(along_col[1] < 0), flip_cols=bool(along_row[0] < 0)
    )
    flags = {"orientation"} if turn != Turn() else set()
    if tilt_nz < _MIN_STRAIGHT_NZ:
        flags.add("oblique")
    return turn, frozenset(flags)


def _cross(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    """Return the cross product of two vectors of three; numpy's is slow for so few numbers."""
    (a, b, c), (d, e, f) = one, other
    return b * f - c * e, c * d - a * f, a * e - b * d


def _positive(dataset: Dataset, keyword: str, *, at_most: float) -> float | None:
    """Return a positive number up to a limit, None for anything else."""
    numbers = numbers_of(dataset, keyword, 1)
    return numbers[0] if numbers and 0 < numbers[0] <= at_most else None


def _bits(dataset: Dataset) -> tuple[int, int, bool]:
    """Return bits allocated, bits stored and whether stored values have a sign."""
    allocated = integer_of(dataset, "BitsAllocated")
    stored = integer_of(dataset, "BitsStored")
    sign = integer_of(dataset, "PixelRepresentation")
    if allocated is None or stored is None or sign not in (0, 1) or not 1 <= stored <= allocated:
        raise SliceError("invalid_header")
    if allocated not in (8, 16, 32) or integer_of(dataset, "HighBit") not in (None, stored - 1):
        raise SliceError("unsupported_bits")
    return allocated, stored, sign == 1


def _rows_cols(dataset: Dataset) -> tuple[int, int]:
    rows, cols = integer_of(dataset, "Rows"), integer_of(dataset, "Columns")
    if rows is None or cols is None:
        raise SliceError("invalid_header")
    return rows, cols


def _values(
    raw: npt.NDArray[Any], allocated: int, stored_bits: int, *, signed: bool
) -> tuple[npt.NDArray[Any], bool]:
    """Return the values of the stored bits, and whether other bits lie above them."""
    if raw.dtype.kind == "u" and raw.dtype.itemsize * 8 == allocated:
        # Nearly every slice: its bits are its values, and nothing has to be cut out of them.
        if signed and stored_bits == allocated:
            return raw.view(raw.dtype.str.replace("u", "i")), False
        if not signed and int(raw.max()) >> stored_bits == 0:
            return raw, False
    bits = raw.astype("i4" if allocated < 32 else "i8") & ((1 << allocated) - 1)
    values: npt.NDArray[Any] = bits & ((1 << stored_bits) - 1)
    if signed:
        sign = 1 << (stored_bits - 1)
        values = (values ^ sign) - sign
    if stored_bits == allocated:
        return values, False
    above = bits >> stored_bits
    # what the sign of a negative value leaves above the stored bits
    extended = (values < 0) * ((1 << (allocated - stored_bits)) - 1)
    return values, bool(((above != 0) & (above != extended)).any())


def _has_padding(dataset: Dataset) -> bool:
    return not is_absent(dataset, "PixelPaddingValue")


def _to_hu(
    stored: npt.NDArray[Any], dataset: Dataset, transform: Dataset
) -> tuple[npt.NDArray[np.float32], frozenset[str]]:
    if text_of(transform, "RescaleType").upper() in _NOT_HU:
        raise SliceError("derived_map")
    flags: frozenset[str] = frozenset()
    if is_absent(transform, "RescaleSlope") or is_absent(transform, "RescaleIntercept"):
        # Some writers store HU and leave 1 and 0 out. An unsigned value cannot be HU, so there
        # 1 and 0 would be wrong by 1024.
        if not _bits(dataset)[2] or "ModalityLUTSequence" in dataset:
            raise SliceError("missing_rescale")
        flags = frozenset({"missing_rescale"})
        hu = stored.astype(np.float32)
    else:
        slope = numbers_of(transform, "RescaleSlope", 1)
        intercept = numbers_of(transform, "RescaleIntercept", 1)
        if slope is None or intercept is None:
            raise SliceError("invalid_rescale")
        if not 0 < abs(slope[0]) <= _MAX_SLOPE or abs(intercept[0]) > _MAX_INTERCEPT:
            raise SliceError("invalid_rescale")
        hu = stored.astype(np.float32)
        hu *= np.float32(slope[0])
        hu += np.float32(intercept[0])
    padded = _padding(stored, dataset)
    if (
        padded is None
        and _has_padding(dataset)
        and integer_of(dataset, "PixelPaddingValue") is None
    ):
        flags |= {"padding"}
    if padded is not None:
        # What scanners write at or below air (-3024 of GE) stays: it is black in any window.
        hu[padded] = np.clip(hu[padded], LOWEST_HU, AIR_HU)
    return hu, flags


def _padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return where the stored values are padding (PS3.3 C.7.5.1.1.2), None if nowhere."""
    value = integer_of(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer_of(dataset, "PixelPaddingRangeLimit")
    allocated, _, signed = _bits(dataset)
    # The element is often written with the other signedness than the pixels.
    ends = [v % (1 << allocated) for v in (value, value if limit is None else limit)]
    if signed:
        ends = [v - (1 << allocated) if v >> (allocated - 1) else v for v in ends]
    padded = (stored >= min(ends)) & (stored <= max(ends))
    return padded if padded.any() else None
