"""Telling formats apart by content, and junk that must come back as a code."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import random
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cctmn.errors import SLICE_CODES, SliceError, StoreError
from cctmn.read.decode import frame_count, open_image, sniff
from tests.read.test_dicom import IMPLICIT, code_of, make_dicom, make_enhanced, phantom_hu
from tests.read.test_picture import GREY, save

MAGICS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\x00", b"MM\x00*", bytes(128) + b"DICM",
          b"\x08\x00\x05\x00CS", b""]  # fmt: skip


def test_sniff() -> None:
    assert sniff(make_dicom(phantom_hu())[:512]) == "dicom"
    assert sniff(save(GREY, "PNG")) == "png"
    assert sniff(save(GREY, "JPEG")) == "jpeg"
    assert sniff(save(GREY, "TIFF")) == sniff(save(GREY, "TIFF", big_tiff=True)) == "tiff"
    for head, kind in ((gzip.compress(b"a"), "gzip"), (bz2.compress(b"a"), "bzip2"),
                       (lzma.compress(b"a"), "xz")):  # fmt: skip
        assert sniff(head) == kind
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w"):
        pass
    assert sniff(packed.getvalue()) == "zip"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    assert sniff(packed.getvalue()[:512]) == "tar"
    for other in (
        b"",
        b"<svg/>",
        b"<html>",
        b"GIF89a",
        b"7z\xbc\xaf\x27\x1c",
        b"\x08\x00",
        b"uri,label\n",
    ):
        assert sniff(other) == ""


def test_dicom_goes_before_the_magic_of_its_preamble() -> None:
    data = make_dicom(phantom_hu())
    for magic in (b"MZ", b"II*\x00", b"\x89PNG\r\n\x1a\n"):
        assert sniff(magic + data[len(magic) :]) == "dicom"


def test_empty_and_foreign() -> None:
    assert code_of(b"") == "empty_file"
    assert code_of(b"<html>login</html>") == "unsupported_format"
    assert code_of(bytes(128) + b"DICM") == "no_pixel_data"


def test_memoryview() -> None:
    assert open_image(memoryview(make_dicom(phantom_hu()))).frame(0).rows == 128


class _Counted(io.BytesIO):
    """A file that counts the bytes asked of it, as a store's ranged reads would."""

    asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.asked += len(data)
        return data


def test_frame_count_reads_little() -> None:
    big = phantom_hu(1024, 1024)
    for data, frames in (
        (make_dicom(big), 1),
        (make_dicom(big, syntax=IMPLICIT), 1),
        (make_enhanced([-1024, -1100]), 2),
        (make_dicom(big, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", NumberOfFrames=9), 1),
        (save(GREY, "JPEG"), 1),
        (seven_pages(), 7),
        (b"", 1),
        (b"II*\x00", 1),
        (bytes(128) + b"DICM\x02\x00", 1),
    ):
        file = _Counted(data)
        assert frame_count(file, kind=sniff(data[:512])) == frames
        assert file.asked <= 64 << 10


def seven_pages() -> bytes:
    page = Image.fromarray(GREY)
    return save(page, "TIFF", save_all=True, append_images=[page] * 6)


def test_errors_of_the_storage_pass() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise StoreError("gone")

    with pytest.raises(StoreError):
        frame_count(Broken(), kind="dicom")


def test_a_deep_nest_is_a_row() -> None:
    item = b"\x09\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = bytes(128) + b"DICM" + b"\x08\x00\x60\x00CS\x02\x00CT" + item * 5000
    assert code_of(data) == "corrupt"
    assert frame_count(io.BytesIO(data), kind="dicom") == 1


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(MAGICS), st.binary(max_size=400))
def test_junk(magic: bytes, tail: bytes) -> None:
    data = magic + tail
    kind = sniff(data[:512])
    assert frame_count(io.BytesIO(data), kind=kind) >= 1
    with pytest.raises(SliceError) as caught:
        open_image(data).frame(0)
    assert caught.value.code in SLICE_CODES
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_flipped_pictures() -> None:
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "TIFF"):
        data = save(GREY, kind)
        for _ in range(100):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(data))] = rng.randrange(256)
            assert frame_count(io.BytesIO(damaged), kind=sniff(bytes(damaged[:512]))) >= 1
            with contextlib.suppress(SliceError):
                open_image(bytes(damaged)).frame(0)
