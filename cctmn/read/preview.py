"""PNG pictures of slices for a page: the turned image in the model's window.

A picture holds nothing of the header. A slice that cannot be read is left out; its row has the
reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from PIL import Image

from cctmn.contract import InputContract
from cctmn.errors import SliceError
from cctmn.read import decode
from cctmn.read.fetch import fetch
from cctmn.read.geometry import Turn
from cctmn.read.preprocess import window
from cctmn.read.slice import Slice

THREADS: Final = 8  # a gallery is some two dozen slices
FULL_PX: Final = 512  # the usual size of a CT slice, so that nothing is lost
SMALL_PX: Final = 320  # for pages with many pictures; two dozen of them stay below 2 MB


@dataclass(frozen=True)
class Preview:
    """The picture of a slice, turned to the usual display, and how it came about."""

    png: bytes
    turn: Turn
    is_oriented: bool
    contract: InputContract | None  # its window; None for a picture, shown as stored

    def as_json(self) -> dict[str, Any]:
        """Return the entry `display` of a case in metrics.json."""
        shown = self.contract
        return {
            **asdict(self.turn),
            "is_oriented": self.is_oriented,
            "window_center_hu": None if shown is None else shown.window_center_hu,
            "window_width_hu": None if shown is None else shown.window_width_hu,
        }


def previews(
    rows: Sequence[dict[str, Any]], *, contract: InputContract, side_px: int
) -> Iterator[tuple[str, Preview]]:
    """Yield slice_id and picture of each row that can be read, in any order.

    A picture's long side has at most `side_px`.
    """
    for slice_id, slice_ in decoded(rows):
        if not isinstance(slice_, SliceError):
            yield slice_id, _preview(slice_, contract, side_px=side_px)


def decoded(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Slice | SliceError]]:
    """Yield slice_id and slice, or why it cannot be read, of rows of the inventory, in any order.

    An object that was replaced since it was listed is a SliceError too.
    """
    for group, data in fetch(rows, threads=THREADS):
        for row in group:
            yield row["slice_id"], _frame(data, row["frame"])


def smaller(png: bytes, *, side_px: int) -> bytes | None:
    """Return a picture with a long side of at most `side_px`, None if it is not a PNG."""
    try:
        return _png(Image.open(io.BytesIO(png), formats=["PNG"]), side_px=side_px)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for a damaged file
        return None


def _frame(data: bytes | SliceError, frame: int) -> Slice | SliceError:
    if isinstance(data, SliceError):
        return data
    try:
        return decode.open_image(data).frame(frame)
    except SliceError as error:
        return error


def _preview(slice_: Slice, contract: InputContract, *, side_px: int) -> Preview:
    is_picture = slice_.unit == "grey8"
    grey = slice_.pixels if is_picture else window(slice_.pixels, contract)
    return Preview(
        _png(Image.fromarray(grey), side_px=side_px),
        slice_.turn,
        slice_.is_oriented,
        None if is_picture else contract,
    )


def _png(picture: Image.Image, *, side_px: int) -> bytes:
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
