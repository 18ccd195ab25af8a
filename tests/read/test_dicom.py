"""DICOM objects written here, in every transfer syntax: what is read, turned, refused and cut."""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

import imagecodecs
import numpy as np
import pydicom.config
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from cctmn.acquisition import Acquisition
from cctmn.errors import SliceError
from cctmn.read.decode import ImageFile, Turn, frame_count, open_image, sniff

# Damaged values must be written before they can be read.
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE, JPEG_LOSSLESS, JPEG_LS = (
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
)
J2K, HTJ2K, JPEG_XL = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.110"
MPEG2 = "1.2.840.10008.1.2.4.100"
NATIVE = [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED]
COMPRESSED = [RLE, JPEG_LOSSLESS, JPEG_LS, J2K, HTJ2K, JPEG_XL]


def phantom_hu(rows: int = 128, cols: int = 128) -> np.ndarray:
    """A body with two lungs that differ, so that every turn of it is another picture."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
    hu = np.where((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1, 40, -1000)
    for x0, width in ((-0.4, 0.3), (0.4, 0.22)):
        hu[((x - x0) / width) ** 2 + ((y - 0.1) / 0.45) ** 2 < 1] = -850
    return (hu + np.random.default_rng(0).integers(-20, 20, hu.shape)).astype(np.int16)


def encode(stored: np.ndarray, syntax: str) -> bytes:
    if syntax == RLE:
        return RLELosslessEncoder.encode(
            stored,
            rows=stored.shape[0],
            columns=stored.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=16,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        )
    if syntax == JPEG_XL:
        return bytes(imagecodecs.jpegxl_encode(stored, lossless=True))
    name = {JPEG_LOSSLESS: "ljpeg", JPEG_LS: "jpegls", J2K: "jpeg2k", HTJ2K: "htj2k"}[syntax]
    return bytes(getattr(imagecodecs, f"{name}_encode")(stored))


def make_dicom(
    hu: np.ndarray,
    *,
    syntax: str = EXPLICIT,
    signed: bool = False,
    extended_offsets: bool = False,
    raw: bytes | None = None,
    **header: Any,
) -> bytes:
    """An object with slope 1; an element given as None is left out, `raw` replaces the pixels."""
    frames = hu if hu.ndim == 3 else hu[None]
    intercept = 0 if signed else -1024
    stored = (frames - intercept).astype(np.int16 if signed else np.uint16)
    ds = Dataset()
    ds.SOPClassUID = CT
    ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientName, ds.PatientID = "CANARY^NAME", "pid"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", ""
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-10, -20, 33.5]
    ds.PixelSpacing = [0.7, 0.8]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = frames.shape[1:]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(signed)
    ds.RescaleSlope, ds.RescaleIntercept = 1, intercept
    if len(frames) > 1:
        ds.NumberOfFrames = len(frames)
    if syntax in NATIVE:
        ds.PixelData = stored.astype(">u2" if syntax == BIG_ENDIAN else "<u2").tobytes()
    elif raw is None:
        streams = [encode(frame.astype(np.uint16), syntax) for frame in stored]
        if extended_offsets:
            ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = (
                encapsulate_extended(streams)
            )
        else:
            ds.PixelData = encapsulate(streams)
    if raw is not None:
        ds.PixelData = raw if syntax in NATIVE else encapsulate([raw])
    ds["PixelData"].VR = "OW" if syntax in NATIVE else "OB"
    for keyword, value in header.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    # pydicom does not know JPEG XL yet: a syntax of the same length takes its place
    ds.file_meta.TransferSyntaxUID = UID(MPEG2 if syntax == JPEG_XL else syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CT)
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue().replace(MPEG2.encode(), syntax.encode())


def make_enhanced(intercepts: list[int], **header: Any) -> bytes:
    """Frames of one picture, each stored with an intercept of its own."""
    hu = np.stack([phantom_hu() - (i + 1024) for i in intercepts])
    per_frame = []
    for index, intercept in enumerate(intercepts):
        transform, position, plane, measures, group = (Dataset() for _ in range(5))
        transform.RescaleSlope, transform.RescaleIntercept = 1, intercept
        position.ImagePositionPatient = [0, 0, float(index)]
        plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0] if index == 0 else [-1, 0, 0, 0, 1, 0]
        measures.PixelSpacing = [0.5, 0.6]
        group.PixelValueTransformationSequence = [transform]
        group.PlanePositionSequence = [position]
        group.PlaneOrientationSequence = [plane]
        group.PixelMeasuresSequence = [measures]
        per_frame.append(group)
    header = {"PerFrameFunctionalGroupsSequence": per_frame, **header}
    drop = ("RescaleSlope", "RescaleIntercept", "ImageOrientationPatient", "ImagePositionPatient")
    return make_dicom(hu, SOPClassUID=ENHANCED, **dict.fromkeys(drop), **header)


def code_of(data: bytes, frame: int = 0) -> str:
    with pytest.raises(SliceError) as caught:
        open_image(data).frame(frame)
    return caught.value.code


def read(data: bytes) -> Any:
    return open_image(data).frame(0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED)
def test_every_syntax_gives_the_same_hu(syntax: str, signed: bool) -> None:
    hu = phantom_hu(96, 160)
    slice_ = read(make_dicom(hu, syntax=syntax, signed=signed))
    np.testing.assert_array_equal(slice_.pixels, hu)
    assert slice_.pixels.dtype == np.float32
    assert slice_.flags == frozenset()
    assert (slice_.rows, slice_.cols, slice_.unit) == (96, 160, "hu")
    assert (slice_.spacing_row_mm, slice_.spacing_col_mm) == (0.7, 0.8)
    assert slice_.slice_z_mm == 33.5
    assert (slice_.study_uid, slice_.series_uid, slice_.patient_id) == ("1.2", None, "pid")


def test_lossy_jpeg_is_flagged_and_uses_the_slope() -> None:
    grey = np.clip((phantom_hu() + 1024) / 8, 0, 255).astype(np.uint8)
    stream = bytes(imagecodecs.jpeg8_encode(grey, level=95))
    eight_bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": 8}
    slice_ = read(
        make_dicom(phantom_hu(), syntax="1.2.840.10008.1.2.4.50", raw=stream, **eight_bits)
    )
    assert slice_.flags == {"lossy"}
    assert np.abs(slice_.pixels - (grey * 8.0 - 1024)).mean() < 20


def test_extended_offset_table() -> None:
    data = make_dicom(
        np.stack([phantom_hu(), phantom_hu()[::-1]]), syntax=J2K, extended_offsets=True
    )
    np.testing.assert_array_equal(open_image(data).frame(1).pixels, phantom_hu()[::-1])


COSINES = {
    (1, 0, 0, 0, 1, 0): Turn(),
    (-1, 0, 0, 0, 1, 0): Turn(flip_cols=True),
    (1, 0, 0, 0, -1, 0): Turn(flip_rows=True),
    (-1, 0, 0, 0, -1, 0): Turn(flip_rows=True, flip_cols=True),
    (0, 1, 0, 1, 0, 0): Turn(transpose=True),
    (0, 1, 0, -1, 0, 0): Turn(transpose=True, flip_cols=True),
    (0, -1, 0, 1, 0, 0): Turn(transpose=True, flip_rows=True),
    (0, -1, 0, -1, 0, 0): Turn(transpose=True, flip_rows=True, flip_cols=True),
}


@pytest.mark.parametrize("cosines", COSINES)
def test_turn_to_the_standard_orientation(cosines: tuple[int, ...]) -> None:
    """The stored image is sampled from one body by the cosines; turned, it is the body again."""
    body = phantom_hu(96, 128)
    along_row, along_col = np.array(cosines[:2]), np.array(cosines[3:5])
    rows, cols = body.shape if along_row[0] else body.shape[::-1]
    stored = np.empty((rows, cols), body.dtype)
    start = [
        side - 1 if step < 0 else 0
        for side, step in zip((128, 96), along_row + along_col, strict=True)
    ]
    for row in range(rows):
        for col in range(cols):
            x, y = np.array(start) + col * along_row + row * along_col
            stored[row, col] = body[y, x]
    slice_ = read(make_dicom(stored, ImageOrientationPatient=list(cosines)))
    np.testing.assert_array_equal(slice_.pixels, body)
    assert slice_.turn == COSINES[cosines]
    assert (slice_.rows, slice_.cols) == (rows, cols)
    assert ("orientation" in slice_.flags) == (slice_.turn != Turn())


def test_plane() -> None:
    tilt = np.radians(20)
    iop = [1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]
    assert read(make_dicom(phantom_hu(), ImageOrientationPatient=iop)).flags == {"oblique"}
    assert (
        code_of(make_dicom(phantom_hu(), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
        == "not_axial"
    )
    for unknown in (None, [0] * 6, [1, 0, 0], [1e200, 0, 0, 0, 1e200, 0], [1, 0, 0, 0, 0.98, 0]):
        assert read(make_dicom(phantom_hu(), ImageOrientationPatient=unknown)).flags == {
            "orientation"
        }


REFUSED = [
    ("not_ct_sop_class", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
    ("dicomdir", {"SOPClassUID": "1.2.840.10008.1.3.10"}),
    ("wrong_modality", {"Modality": "PT"}),
    ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ("derived_map", {"ImageType": ["DERIVED", "SECONDARY", "MPR", "MIP"]}),
    ("derived_map", {"RescaleType": "Z_EFF"}),
    ("color", {"PhotometricInterpretation": "RGB"}),
    ("color", {"SamplesPerPixel": 3}),
    ("invalid_header", {"BitsStored": 17}),
    ("invalid_header", {"BitsAllocated": None}),
    ("invalid_header", {"Rows": None}),
    ("unsupported_bits", {"BitsAllocated": 64}),
    ("unsupported_bits", {"HighBit": 11}),
    ("too_large", {"Rows": 60000}),
    ("too_small", {"Rows": 32}),
    ("truncated", {"Rows": 150}),
    ("pixel_length_mismatch", {"Rows": 100}),
    ("invalid_rescale", {"RescaleSlope": 0}),
    ("invalid_rescale", {"RescaleSlope": "NaN"}),
    ("invalid_rescale", {"RescaleIntercept": "-1e30"}),
    ("missing_rescale", {"RescaleSlope": None}),
    ("implausible_hu", {"RescaleIntercept": 1024}),
    ("no_pixel_data", {"PixelData": None}),
]


@pytest.mark.parametrize(("code", "header"), REFUSED)
def test_refused(code: str, header: dict[str, Any]) -> None:
    data = make_dicom(phantom_hu(), **header)
    assert code_of(data) == code


def test_values() -> None:
    hu = phantom_hu()
    assert read(make_dicom(hu, PhotometricInterpretation="MONOCHROME1")).flags == {"monochrome1"}
    missing = read(make_dicom(hu, signed=True, RescaleSlope=None, RescaleIntercept=None))
    assert missing.flags == {"missing_rescale"}
    np.testing.assert_array_equal(missing.pixels, hu)
    # 12 bits stored below overlay bits
    overlay = ((hu + 1024).astype(np.uint16) | 0xA000).tobytes()
    masked = read(make_dicom(hu, raw=overlay, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(masked.pixels, hu)
    wide = (hu + 1024).astype(np.uint32).tobytes()
    bits32 = read(make_dicom(hu, raw=wide, BitsAllocated=32, BitsStored=32, HighBit=31))
    np.testing.assert_array_equal(bits32.pixels, hu)
    no_class = read(make_dicom(hu, SOPClassUID=None))
    np.testing.assert_array_equal(no_class.pixels, hu)


@pytest.mark.parametrize(("value", "limit"), [(4000, None), (3990, 4010), (4010, 3990)])
def test_padding_becomes_air(value: int, limit: int | None) -> None:
    hu = phantom_hu()
    padded = hu.copy()
    padded[:10] = 4000 - 1024
    header = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    slice_ = read(make_dicom(padded, PixelPaddingValue=value, **header))
    assert (slice_.pixels[:10] == -1024).all()
    np.testing.assert_array_equal(slice_.pixels[10:], hu[10:])


def test_padding_of_the_other_signedness_and_below_air() -> None:
    hu = phantom_hu()
    hu[:10] = -2000
    slice_ = read(make_dicom(hu, signed=True, PixelPaddingValue=-2000))
    assert (slice_.pixels[:10] == -2000).all()  # black in any window already
    hu[:10] = -32768
    assert (read(make_dicom(hu, signed=True, PixelPaddingValue=-32768)).pixels[:10] == -4200).all()


def test_enhanced_frames_have_their_own_groups() -> None:
    data = make_enhanced([-1024, -1100, -1200])
    assert frame_count(io.BytesIO(data), kind="dicom") == 3
    image = open_image(data)
    assert image.frames == 3
    for index in range(3):
        slice_ = image.frame(index)
        expected = phantom_hu() if index == 0 else phantom_hu()[:, ::-1]
        np.testing.assert_array_equal(slice_.pixels, expected)
        assert "multiframe" in slice_.flags
        assert slice_.slice_z_mm == index
        assert (slice_.spacing_row_mm, slice_.spacing_col_mm) == (0.5, 0.6)
    assert code_of(data, 3) == "truncated"


def test_scanner_and_reconstruction_are_read() -> None:
    header = {
        "Manufacturer": "SIEMENS",
        "ManufacturerModelName": "SOMATOM Definition AS+",
        "ConvolutionKernel": ["Br38f", "3"],
        "ImageType": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
        "SliceThickness": 1.25,
        "KVP": 120,
        "InstanceNumber": 17,
    }
    assert read(make_dicom(phantom_hu(), **header)).acquisition == Acquisition(
        manufacturer="SIEMENS",
        scanner_model="SOMATOM DEFINITION AS",
        kernel="BR38F\\3",
        slice_thickness_mm=1.25,
        tube_voltage_kv=120,
        image_type="DERIVED\\PRIMARY\\AXIAL\\CT SOM5 SPI",
        transfer_syntax=EXPLICIT,
        instance_number=17,
    )


def test_damaged_elements_of_the_scanner_are_left_out() -> None:
    header = {"SliceThickness": 1e30, "KVP": -120, "InstanceNumber": 99999999999}
    header |= {"ImageType": ["", "Roe^Jane"], "Manufacturer": ""}
    acquired = read(make_dicom(phantom_hu(), **header)).acquisition
    assert acquired == Acquisition(image_type="OTHER\\OTHER", transfer_syntax=EXPLICIT)


def test_frames_share_a_kernel() -> None:
    reconstruction, beam, shared = (Dataset() for _ in range(3))
    reconstruction.ConvolutionKernel = "LUNG"
    beam.KVP = 100
    shared.CTReconstructionSequence, shared.CTXRayDetailsSequence = [reconstruction], [beam]
    data = make_enhanced([-1024, -1100], SharedFunctionalGroupsSequence=[shared])
    acquired = open_image(data).frame(1).acquisition
    assert (acquired.kernel, acquired.tube_voltage_kv) == ("LUNG", 100)


def test_a_lie_about_frames_is_one_row() -> None:
    data = make_enhanced([-1024, -1100], NumberOfFrames=100_000)
    assert frame_count(io.BytesIO(data), kind="dicom") == 1
    assert code_of(data) == "corrupt"


def test_headless() -> None:
    data = make_dicom(phantom_hu())
    body = data[data.index(b"\x08\x00\x08\x00CS") :]
    assert sniff(body) == "dicom"
    np.testing.assert_array_equal(read(body).pixels, phantom_hu())
    implicit = make_dicom(phantom_hu(), syntax=IMPLICIT)
    body = implicit[implicit.index(b"\x08\x00\x08\x00") :]
    assert sniff(body) == "dicom"
    np.testing.assert_array_equal(read(body).pixels, phantom_hu())


def test_explicit_header_that_is_implicit() -> None:
    data = make_dicom(phantom_hu(), syntax=IMPLICIT)
    with_length = data.replace(
        b"1.2.840.10008.1.2\x00", b"1.2.840.10008.1.2 "
    )  # same length, still implicit
    np.testing.assert_array_equal(read(with_length).pixels, phantom_hu())
    explicit = make_dicom(phantom_hu()).replace(
        b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2\x00\x00\x00"
    )
    np.testing.assert_array_equal(read(explicit).pixels, phantom_hu())


def test_trailing_data() -> None:
    for syntax in (EXPLICIT, JPEG_LS):
        data = make_dicom(phantom_hu(), syntax=syntax)
        assert read(data + b"garbage" * 10).flags == {"trailing_data"}
        padding = b"\xfc\xff\xfc\xffOB\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00"
        assert read(data + padding).flags == frozenset()


@pytest.mark.parametrize(
    ("code", "syntax"),
    [("unsupported_transfer_syntax", "1.2.840.10008.1.2.4.53"), ("decode_error", J2K)],
)
def test_raw_pixels_called_compressed(code: str, syntax: str) -> None:
    data = make_dicom(phantom_hu(), syntax=EXPLICIT)
    old = EXPLICIT.encode() + b"\x00"
    start = data.index(old)
    meta = data[:start] + syntax.encode().ljust(22, b"\x00") + data[start + len(old) :]
    length = (22).to_bytes(2, "little")
    assert code_of(meta[: start - 2] + length + meta[start:]) == code


def test_codestream_must_agree_with_the_header() -> None:
    other = phantom_hu(128, 120)
    for syntax in (JPEG_LOSSLESS, JPEG_LS, J2K, HTJ2K):
        stream = encode((other + 1024).astype(np.uint16), syntax)
        assert (
            code_of(make_dicom(phantom_hu(), syntax=syntax, raw=stream)) == "pixel_length_mismatch"
        )
    # values that BitsStored cannot hold
    stream = encode((phantom_hu() + 8192).astype(np.uint16), JPEG_LS)
    assert (
        code_of(make_dicom(phantom_hu(), syntax=JPEG_LS, raw=stream, BitsStored=12, HighBit=11))
        == "implausible_hu"
    )


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, JPEG_LS])
def test_bits_above_bits_stored_are_ignored_and_flagged(syntax: str) -> None:
    stored = (phantom_hu() + 1024).astype(np.uint16)
    stored[5:9, 5:9] |= 0x8000  # an overlay of old
    raw = encode(stored, syntax) if syntax == JPEG_LS else stored.tobytes()
    slice_ = read(make_dicom(phantom_hu(), syntax=syntax, raw=raw, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(slice_.pixels, phantom_hu())
    assert slice_.flags == {"high_bits"}


def test_a_value_above_the_largest_stated_is_flagged() -> None:
    largest = int(phantom_hu().max()) + 1024
    header = {"syntax": JPEG_LS, "LargestImagePixelValue": largest}
    assert read(make_dicom(phantom_hu(), **header)).flags == frozenset()
    header["LargestImagePixelValue"] -= 1
    assert read(make_dicom(phantom_hu(), **header)).flags == {"above_largest"}
    assert read(make_dicom(phantom_hu(), PixelPaddingValue=0, **header)).flags == frozenset()


def test_deflated_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cctmn.read.dicom.MAX_INFLATED_BYTES", 4096)
    assert code_of(make_dicom(phantom_hu(), syntax=DEFLATED)) == "too_large"


def _same(image: ImageFile) -> bool:
    return bool(np.array_equal(image.frame(0).pixels, phantom_hu(64, 64)))


@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED)
def test_a_cut_file_never_gives_another_picture(syntax: str) -> None:
    data = make_dicom(phantom_hu(64, 64), syntax=syntax)
    for end in [
        *range(140, len(data), max(1, len(data) // 120)),
        *range(len(data) - 24, len(data)),
    ]:
        with contextlib.suppress(SliceError):
            assert _same(open_image(data[:end])), (syntax, end)


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS, JPEG_LS, J2K, HTJ2K, JPEG_XL])
def test_a_cut_codestream_in_a_whole_container(syntax: str) -> None:
    stream = encode((phantom_hu(64, 64) + 1024).astype(np.uint16), syntax)
    for end in range(0, len(stream) - 2, max(1, len(stream) // 60)):
        data = make_dicom(phantom_hu(64, 64), syntax=syntax, raw=stream[:end] or b"\x00\x00")
        assert code_of(data) in ("truncated", "decode_error", "pixel_length_mismatch")


@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED)
def test_flipped_bytes_raise_nothing_but_slice_errors(syntax: str) -> None:
    data = bytearray(make_dicom(phantom_hu(64, 64), syntax=syntax))
    rng = random.Random(syntax)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(data), 1500) if rng.random() < 0.7 else len(data))
            damaged[at] = rng.randrange(256)
        with contextlib.suppress(SliceError):
            frame_count(io.BytesIO(damaged), kind=sniff(bytes(damaged[:512])))
            open_image(bytes(damaged)).frame(0)


def test_nothing_is_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_dicom(phantom_hu(), RescaleIntercept=-1024.5).replace(b"0.7\\0.8 ", b"CANARY\\ ")
    assert read(data).spacing_row_mm is None
    assert code_of(data.replace(b"-1024.5 ", b"CANARY  ")) == "invalid_rescale"
    for syntax in COMPRESSED:
        stream = bytearray(encode((phantom_hu() + 1024).astype(np.uint16), syntax))
        stream[len(stream) // 3 :: 97] = b"\x5a" * len(stream[len(stream) // 3 :: 97])
        with contextlib.suppress(SliceError):
            read(make_dicom(phantom_hu(), syntax=syntax, raw=bytes(stream[:-2]) + b"\xff\xd9"))
    out, err = capfd.readouterr()
    assert caplog.text + out + err == ""
