"""Every loose file of the corpus against its manifest and its golden pixels.

The golden hashes are sha256, first 16 digits, of the *stored* orientation at the original size:
hu_sha16 of HU rounded to little endian int16, win_sha16 of the uint8 lung window (for pictures: of
the grey as stored).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from cctmn.contract import InputContract
from cctmn.errors import SliceError
from cctmn.read.decode import Turn, frame_count, open_image, sniff
from cctmn.read.preprocess import to_input
from tests.conftest import REPO, SHARED

CORPUS = SHARED / "data" / "corpus"
SLICES = CORPUS.parent / "ct_slices"
pytestmark = pytest.mark.skipif(
    not CORPUS.is_dir(), reason="no corpus: the folder `shared` is not beside the checkout"
)

# A lossy 12-bit stream decodes to other values in every decoder (by one step of 2 HU here), and the
# golden padding was left bright on purpose, to see whether a reader makes it air.
NOT_GOLDEN = {"dicom_odd/ctimage_jpeg12bit51_lossy.dcm", "dicom_odd/x_padding_bright_4095.dcm"}
# What the manifest calls otherwise, or where another check comes first in our order.
OTHER_CODE = {
    "dicom_bad/pydicom_MR_small.dcm": "not_ct_sop_class",
    "dicom_bad/pydicom_no_meta_group_length.dcm": "not_ct_sop_class",
    "dicom_odd/acr_nema_headless_lspine.dcm": "no_air",
    "dicom_odd/x_imagetype_mip.dcm": "derived_map",
    "png/x_mask_0123.png": "constant_image",
}
# Names of flags in the manifest that the schema spells otherwise.
FLAG_NAMES = {
    "orientation_unknown": "orientation",
    "pixel_length": "trailing_data",
    "multi_page": "multiframe",
}


def rows_of(name: str) -> list[dict[str, str]]:
    if not CORPUS.is_dir():
        return []
    with (CORPUS / name).open(newline="") as file:
        return list(csv.DictReader(file))


LOOSE = [row for row in rows_of("manifest.csv") if row["kind"] != "archives"]
GOLDEN = {(r["file"], int(r["frame"])): r for r in rows_of("golden_pixels.csv") if not r["member"]}


def sha16(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def undo(pixels: np.ndarray, turn: Turn) -> np.ndarray:
    pixels = pixels[::-1] if turn.flip_rows else pixels
    pixels = pixels[:, ::-1] if turn.flip_cols else pixels
    return pixels.T if turn.transpose else pixels


@pytest.mark.parametrize("row", LOOSE, ids=[row["file"] for row in LOOSE])
def test_file(row: dict[str, str]) -> None:
    data = (CORPUS / row["file"]).read_bytes()
    start = time.process_time()
    frames = frame_count(io.BytesIO(data), kind=sniff(data[:512]))
    assert frames == int(row["n_rows"])
    for index in range(frames):
        code, flags = "", frozenset[str]()
        try:
            slice_ = open_image(data).frame(index)
            as_stored = InputContract(size_px=min(slice_.pixels.shape), max_size_px=4096)
            model_input = to_input(slice_, as_stored)
            flags = model_input.flags
        except SliceError as error:
            code = error.code
        expected = row["expected"]
        if code:
            assert expected not in ("scored", "scored_flag")
            assert code == OTHER_CODE.get(row["file"], code)
            assert row["file"] in OTHER_CODE or re.fullmatch(row["code"], code)
        else:
            assert expected not in ("error", "skip")
            if expected in ("flag_or_skip", "scored_flag"):
                assert flags & {FLAG_NAMES.get(c, c) for c in row["code"].split("|")} or (
                    expected == "flag_or_skip" and flags
                )
        golden = GOLDEN.get((row["file"], index))
        if golden and not code and row["file"] not in NOT_GOLDEN:
            if slice_.unit == "hu":
                hu = undo(slice_.pixels, slice_.turn).round().astype("<i2")
                assert sha16(hu) == golden["hu_sha16"]
            assert sha16(undo(model_input.pixels, slice_.turn)) == golden["win_sha16"]
    assert time.process_time() - start < 2  # s; the deflated bomb takes 0.5


def test_what_is_not_golden() -> None:
    name = "dicom_odd/ctimage_jpeg12bit51_lossy.dcm"
    slice_ = open_image((CORPUS / name).read_bytes()).frame(0)
    assert slice_.pixels.mean() == pytest.approx(float(GOLDEN[name, 0]["hu_mean"]), abs=0.5)
    name = "dicom_odd/x_padding_bright_4095.dcm"
    base = open_image((CORPUS / "dicom_odd/x_b2_ele.dcm").read_bytes()).frame(0)
    slice_ = open_image((CORPUS / name).read_bytes()).frame(0)
    changed = slice_.pixels != base.pixels
    assert changed.any()
    assert (slice_.pixels[changed] == -1024).all()


def test_equal_content_gives_equal_input() -> None:
    """Files of one equivalence group differ in container and syntax alone."""
    groups: dict[str, set[str]] = {}
    for row in LOOSE:
        group = row["equiv_group"]
        if not group or group.startswith("~") or row["expected"] == "scored_or_error":
            continue
        slice_ = open_image((CORPUS / row["file"]).read_bytes()).frame(0)
        pixels = to_input(slice_, InputContract()).pixels
        groups.setdefault(group, set()).add(sha16(pixels))
    assert len(groups) >= 6
    assert all(len(hashes) == 1 for hashes in groups.values()), groups


@pytest.mark.skipif(not SLICES.is_dir(), reason="no ct_slices in the folder `shared`")
def test_lung_flags_of_ordinary_slices() -> None:
    """Twelve drawn slices, and one whole patient every 4th slice from shoulder to liver."""
    flagged = set()
    for path in sorted(SLICES.iterdir()):
        flags = to_input(open_image(path.read_bytes()).frame(0), InputContract()).flags
        assert flags <= {"no_lung", "lossy", "color"}, (path.name, flags)
        if "no_lung" in flags:
            flagged.add(path.stem)
    assert flagged == {"IMG-0001-00007", "IMG-0001-00051", "IMG-0001-00055"}


DECODE_ALL = """
import sys
from pathlib import Path
from cctmn.errors import SliceError
from cctmn.read.decode import open_image
from tests.peak import peak_kib

for path in sorted(Path(sys.argv[1]).rglob("*.*")):
    try:
        image = open_image(path.read_bytes())
        for frame in range(image.frames):
            image.frame(frame)
    except (SliceError, IsADirectoryError):
        pass
print(peak_kib())
"""


def test_no_file_takes_a_gibibyte() -> None:
    """In a process of its own, so that no other test's memory is counted."""
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, CORPUS],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    assert int(done.stdout) < 1 << 20
