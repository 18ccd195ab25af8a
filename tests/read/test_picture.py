"""Pictures written here: grey as stored, and no picture whose scale or whose end is in doubt."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cctmn.errors import SliceError
from cctmn.read.decode import Slice, Turn, frame_count, open_image, sniff
from tests.read.test_dicom import code_of, phantom_hu
from tests.read.test_preprocess import window

GREY = window(phantom_hu(96, 160))


def save(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(out, kind, **options)
    return out.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def read(data: bytes, frame: int = 0) -> Slice:
    return open_image(data).frame(frame)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"transparency": 0}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_grey_as_stored(kind: str, options: dict[str, Any]) -> None:
    slice_ = read(save(GREY, kind, **options))
    np.testing.assert_array_equal(slice_.pixels, GREY)
    assert slice_.pixels.dtype == np.uint8
    assert slice_.pixels.flags.writeable
    assert slice_.flags == frozenset()
    assert (slice_.unit, slice_.rows, slice_.cols) == ("grey8", 96, 160)
    assert slice_.patient_id is slice_.study_uid is slice_.slice_z_mm is None


def test_jpeg() -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(GREY).convert("RGB")):
        slice_ = read(save(image, "JPEG", quality=95))
        assert slice_.flags == {"lossy"}
        assert np.abs(slice_.pixels.astype(int) - GREY).mean() < 3
    cmyk = read(save(Image.fromarray(GREY).convert("CMYK"), "JPEG", quality=95))
    assert cmyk.flags - {"color"} == {"lossy"}
    assert np.abs(cmyk.pixels.astype(int) - GREY).mean() < 3


def test_white_is_zero() -> None:
    data = save(GREY, "TIFF", tiffinfo={262: 0})  # Pillow inverts what it writes
    assert GREY.tobytes() not in data
    np.testing.assert_array_equal(read(data).pixels, GREY)


def test_color_and_alpha() -> None:
    rgb = np.stack([GREY] * 3, axis=2)
    assert read(save(rgb, "PNG")).flags == set()  # three equal channels are grey
    tinted = rgb.copy()
    tinted[5, 5, 0] ^= 1
    assert read(save(tinted, "PNG")).flags == {"color"}
    palette = Image.fromarray(GREY).convert("P")
    np.testing.assert_array_equal(read(save(palette, "PNG")).pixels, GREY)
    for mode in ("RGBA", "LA"):
        image = Image.fromarray(GREY).convert(mode)
        assert "alpha" not in read(save(image, "PNG")).flags
        image.putpixel((80, 48), (*[200] * (len(mode) - 1), 0))
        slice_ = read(save(image, "PNG"))
        assert "alpha" in slice_.flags
        assert slice_.pixels[48, 80] == 200  # what lies under transparency is shown
    rgb[:20, :20, 0] = 255
    rgb[:20, :20, 1:] = 0
    assert code_of(save(rgb, "PNG")) == "color"


def test_depth() -> None:
    full = (GREY.astype(np.uint16) * 257).clip(0, 65535).astype(np.uint16)
    full[0, 0] = 65535
    expected = GREY.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read(save(full, "PNG")).pixels, expected)
    hu = phantom_hu(96, 160)
    assert code_of(save((hu + 1024).astype(np.uint16), "PNG")) == "ambiguous_depth"
    assert code_of(save(hu.view(np.uint16), "PNG")) == "ambiguous_depth"  # wrapped negative HU
    assert code_of(save((hu + 1024).astype(np.uint16), "TIFF")) == "ambiguous_depth"
    assert code_of(save(hu.astype(np.float32), "TIFF")) == "unsupported_bits"
    assert code_of(save(hu.astype(np.int32), "TIFF")) == "unsupported_bits"


def whole_png(grey: np.ndarray, *, interlaced: bool, rows: int) -> bytes:
    """A PNG, its chunks and sums all right, that packs only its first `rows` rows (of a pass)."""
    height, width = grey.shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    passes = [*passes, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    lines = [b"\0" + line.tobytes() for x, y, dx, dy in passes for line in grey[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, int(interlaced))
    body = zlib.compress(b"".join(lines[: len(lines) + rows - height]))
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_rows_that_were_never_packed(interlaced: bool) -> None:
    whole = whole_png(GREY, interlaced=interlaced, rows=96)
    np.testing.assert_array_equal(read(whole).pixels, GREY)
    assert code_of(whole_png(GREY, interlaced=interlaced, rows=95)) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """The stored picture is made by undoing the turn that the tag asks for."""
    exif = Image.Exif()
    exif[274] = orientation
    slice_ = read(save(GREY, kind, exif=exif))
    np.testing.assert_allclose(
        slice_.pixels.astype(int), slice_.turn.apply(GREY).astype(int), atol=60
    )
    turned = Image.open(io.BytesIO(save(GREY, "PNG", exif=exif)))
    shown = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    assert np.abs(shown - slice_.pixels.astype(int)).mean() < 5
    assert (slice_.rows, slice_.cols) == (96, 160)
    assert ("orientation" in slice_.flags) == (slice_.turn != Turn()) == (orientation != 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_frames(kind: str) -> None:
    pages = [GREY, GREY[::-1], GREY[:, ::-1]]
    images = [Image.fromarray(page) for page in pages]
    data = save(images[0], kind, save_all=True, append_images=images[1:])
    assert frame_count(io.BytesIO(data), kind=sniff(data[:512])) == 3
    image = open_image(data)
    assert image.frames == 3
    for index in (2, 0, 1):
        slice_ = image.frame(index)
        np.testing.assert_array_equal(slice_.pixels, pages[index])
        assert "multiframe" in slice_.flags
    assert code_of(data, 3) == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_frames_are_not_walked_again_for_each(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the pages took a hundred times as long."""
    images = [Image.fromarray(np.roll(GREY, n, axis=0)) for n in range(30)]
    data = save(images[0], kind, save_all=True, append_images=images[1:])
    opened = type(Image.open(io.BytesIO(data)))
    steps = []
    seek = opened._seek

    def counted(self: Any, frame: int, *args: Any) -> None:
        steps.append(frame)
        seek(self, frame, *args)

    monkeypatch.setattr(opened, "_seek", counted)
    image = open_image(data)
    for index in range(30):
        np.testing.assert_array_equal(image.frame(index).pixels, np.roll(GREY, index, axis=0))
    assert len(steps) < 3 * 30


def test_lies_about_frames() -> None:
    png = save(GREY, "PNG")
    lie = png[:33] + png_chunk(b"acTL", struct.pack(">II", 100_000, 0)) + png[33:]
    assert frame_count(io.BytesIO(lie), kind="png") == 1
    tiff = bytearray(save(GREY, "TIFF"))
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    struct.pack_into("<I", tiff, at + 2 + 12 * count, at)  # the page follows itself
    assert frame_count(io.BytesIO(tiff), kind="tiff") == 1


def test_bombs_are_stopped_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(13_000 * (13_000 // 8 + 1)))
    png = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows)
    assert code_of(png + png_chunk(b"IEND", b"")) == "too_large"
    jpeg = bytearray(save(GREY, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    assert code_of(bytes(jpeg)) == "too_large"
    for side in (9_000, 60_000):
        tiff = bytearray(save(GREY, "TIFF"))
        (at,) = struct.unpack_from("<I", tiff, 4)
        (count,) = struct.unpack_from("<H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
                struct.pack_into("<HII", tiff, entry + 2, 4, 1, side)
        assert code_of(bytes(tiff)) == "too_large"


def test_too_small() -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        assert code_of(save(np.zeros((8, 400), np.uint8), kind)) == "too_small"


def test_damage() -> None:
    png = save(GREY, "PNG")
    assert code_of(png[:-12]) == "truncated"
    assert code_of(png[:-3]) == "truncated"
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    assert code_of(bytes(flipped)) == "corrupt"
    assert read(png + b"PK\x03\x04").flags == {"trailing_data"}


def test_a_cut_jpeg_with_a_thumbnail_is_cut() -> None:
    thumbnail = save(GREY[:64, :64], "JPEG")
    data = save(GREY, "JPEG", exif=b"Exif\x00\x00II*\x00" + thumbnail)
    assert read(data).rows == 96
    assert thumbnail.endswith(b"\xff\xd9")
    for end in range(len(data) - 1, len(thumbnail), -211):
        assert code_of(data[:end]) == "truncated"
    assert read(data + b"junk").flags == {"lossy", "trailing_data"}


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_a_cut_picture_never_gives_another(options: dict[str, Any]) -> None:
    for kind in ("PNG", "TIFF"):
        data = save(GREY, kind, **options)
        for end in range(9, len(data), max(1, len(data) // 100)):
            try:
                pixels = read(data[:end]).pixels
            except SliceError:
                continue
            np.testing.assert_array_equal(pixels, GREY)
