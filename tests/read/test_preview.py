"""Pictures of slices for a page: turned to the usual display, and how they say so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from cctmn.contract import InputContract
from cctmn.read.geometry import Turn
from cctmn.read.preview import Preview, previews, smaller
from tests.makers import dicom, png

UPRIGHT, PRONE = [1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0]


def picture(path: Path, data: bytes, *, side_px: int = 512) -> Preview:
    path.write_bytes(data)
    row: dict[str, Any] = {"slice_id": "a", "uri": path.absolute().as_uri(), "member": ""}
    row |= {"frame": 0, "container": "", "offset": 0, "occurrence": 0, "method": 0, "crc32": 0}
    row |= dict.fromkeys(("packed_size", "size", "object_size"), len(data)) | {"etag": ""}
    [(_, preview)] = previews([row], contract=InputContract(), side_px=side_px)
    return preview


def oriented(orientation: list[int]) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(dicom(0)))
    dataset.ImageOrientationPatient = orientation
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def grey(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_picture_is_turned_to_the_usual_display(tmp_path: Path) -> None:
    upright = picture(tmp_path / "a.dcm", oriented(UPRIGHT))
    prone = picture(tmp_path / "b.dcm", oriented(PRONE))
    assert upright.is_oriented
    assert prone.is_oriented
    assert (upright.turn, prone.turn) == (Turn(), Turn(flip_rows=True, flip_cols=True))
    assert (grey(prone.png) == grey(upright.png)[::-1, ::-1]).all()


def test_the_entry_of_metrics_json_says_how_a_slice_is_shown(tmp_path: Path) -> None:
    shown = picture(tmp_path / "a.dcm", oriented(PRONE)).as_json()
    assert shown == {
        "transpose": False,
        "flip_rows": True,
        "flip_cols": True,
        "is_oriented": True,
        "window_center_hu": -600,
        "window_width_hu": 1500,
    }
    plain = picture(tmp_path / "a.png", png(1)).as_json()
    assert not plain["is_oriented"]
    assert plain["window_center_hu"] is None


@pytest.mark.parametrize(("side_px", "expected"), [(512, 64), (32, 32)])
def test_a_picture_is_made_smaller_and_never_larger(
    tmp_path: Path, side_px: int, expected: int
) -> None:
    assert grey(picture(tmp_path / "a.png", png(1), side_px=side_px).png).shape[0] == expected
    shrunk = smaller(png(1), side_px=side_px)
    assert shrunk is not None
    assert grey(shrunk).shape[0] == expected


def test_what_is_no_png_is_not_made_smaller() -> None:
    assert smaller(b"GIF89a", side_px=32) is None
    assert smaller(png(1)[:60], side_px=32) is None
