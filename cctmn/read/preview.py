"""Small PNG pictures of slices for a person: the stored image in the model's window.

A picture holds nothing of the header. A slice that cannot be read is left out; its row has the
reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from cctmn.contract import InputContract
from cctmn.errors import SliceError
from cctmn.read import decode
from cctmn.read.fetch import fetch
from cctmn.read.preprocess import window
from cctmn.read.slice import Slice

THREADS = 8  # a gallery is some two dozen slices
LONG_SIDE_PX = 320  # on a page they are no larger, and two dozen of them stay below 2 MB


def previews(
    rows: Sequence[dict[str, Any]], *, contract: InputContract
) -> Iterator[tuple[str, bytes]]:
    """slice_id and PNG of each row that can be read, in any order."""
    for slice_id, slice_ in decoded(rows):
        if not isinstance(slice_, SliceError):
            yield slice_id, _png(slice_, contract)


def decoded(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Slice | SliceError]]:
    """Yield slice_id and slice, or why it cannot be read, of rows of the inventory, in any order.

    An object that was replaced since it was listed is a SliceError too.
    """
    for group, data in fetch(rows, threads=THREADS):
        for row in group:
            yield row["slice_id"], _frame(data, row["frame"])


def _frame(data: bytes | SliceError, frame: int) -> Slice | SliceError:
    if isinstance(data, SliceError):
        return data
    try:
        return decode.open_image(data).frame(frame)
    except SliceError as error:
        return error


def _png(slice_: Slice, contract: InputContract) -> bytes:
    grey = slice_.pixels if slice_.unit == "grey8" else window(slice_.pixels, contract)
    # boxes are in px of the stored image
    stored = slice_.turn.undo(grey)
    picture = Image.fromarray(stored)
    picture.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
