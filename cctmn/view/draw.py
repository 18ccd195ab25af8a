"""A slice as a picture for a person: square in mm, in the standard display, with its lesions.

The slice is turned as a radiologist expects it: the patient's right on the left, anterior on top.
Boxes and masks are in px of the stored image and follow the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cctmn import rle
from cctmn.contract import InputContract
from cctmn.metrics.metric import DRAWN_SCORE
from cctmn.read.geometry import Affine
from cctmn.read.preprocess import stretch_of, window
from cctmn.read.slice import Slice

SCALE_BAR_MM: Final = 50.0
SCALE_BAR_TEXT: Final = "5 cm"
# Told apart with any colour vision, and on grey (Okabe and Ito's palette, lightened).
COLORS: Final = ("#ffb000", "#56c8f0", "#ff7ab8", "#8fe388")
WHITE: Final = "#ffffff"
_SHADOW: Final = "#000000"


@dataclass(frozen=True)
class Display:
    """A slice in grey, ready to draw on."""

    grey: Image.Image
    to_display: Affine  # from px of the stored image
    mm_per_px: float | None  # None if the spacing is not known
    is_oriented: bool  # whether left, right, front and back are known


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, so that a picture is the same everywhere."""
    return ImageFont.load_default(size)


def display(slice_: Slice, contract: InputContract, *, side_px: int, full: bool) -> Display:
    """Return the slice in the window of the contract, its long side `side_px` long.

    With `full` it is larger if that is needed to show every pixel.
    """
    turned = window(slice_.pixels, contract) if slice_.unit == "hu" else slice_.pixels
    height, width = turned.shape
    stretch = stretch_of(slice_)
    scale = side_px / max(height * stretch, width)
    if full:
        scale = max(scale, 1.0, 1 / stretch)
    size = (max(1, round(width * scale)), max(1, round(height * stretch * scale)))
    to_stored = Affine.from_turn_and_scale(
        slice_.turn,
        scale_row=size[1] / height,
        scale_col=size[0] / width,
        rows=slice_.rows,
        cols=slice_.cols,
    )
    across_mm = slice_.spacing_row_mm if slice_.turn.transpose else slice_.spacing_col_mm
    return Display(
        Image.fromarray(turned).resize(size, Image.Resampling.BICUBIC),
        to_stored.inverse(),
        None if not across_mm else across_mm * width / size[0],
        slice_.is_oriented,
    )


def scale_bar_px(width_px: float, mm_per_px: float | None) -> float | None:
    """Return the length of the scale bar; None if the spacing is unknown or cannot be true."""
    length = SCALE_BAR_MM / mm_per_px if mm_per_px else 0
    return length if width_px / 50 < length < 0.8 * width_px else None


def annotate(
    shown: Display, row: Mapping[str, Any], *, colors: Mapping[str, str], text_px: int
) -> Image.Image:
    """Return the picture with the lesions of a prediction, the marks and the scale bar."""
    picture = _outlined(shown, row, colors=colors)
    pen = ImageDraw.Draw(picture)
    # The surest lesion is drawn last, on top of the others.
    for number, lesion in reversed(list(enumerate(row["lesions"] or (), start=1))):
        color = colors[lesion["label"]]
        box = [lesion[k] for k in ("x0", "y0", "x1", "y1")]
        x0, y0, x1, y1 = shown.to_display.boxes(np.array([box]))[0]
        corners = (
            round(x0),
            round(y0),
            max(round(x0), round(x1) - 1),
            max(round(y0), round(y1) - 1),
        )
        pen.rectangle(corners, outline=color, width=2 if lesion["score"] >= DRAWN_SCORE else 1)
        # Above the box, so that a small lesion stays visible; at the top edge, below it.
        at, anchor = ((x0, y0 - 2), "ld") if y0 > 1.5 * text_px else ((x0, y1 + 2), "la")
        _text(pen, at, str(number), size=text_px, color=color, anchor=anchor)
    if shown.is_oriented:
        _marks(pen, picture.size, text_px=text_px + 4)
    _scale_bar(pen, picture.size, shown.mm_per_px, text_px=text_px)
    return picture


def _outlined(shown: Display, row: Mapping[str, Any], *, colors: Mapping[str, str]) -> Image.Image:
    """Return the picture in colour, with the outline of each mask."""
    rgb = np.array(shown.grey.convert("RGB"))
    masks: Sequence[bytes] = row.get("lesion_masks") or ()
    for lesion, counts in zip(row["lesions"] or (), masks, strict=False):
        stored = rle.decode(counts, size=(row["rows"], row["cols"]))
        mask = _at_display(stored, shown, size=rgb.shape[:2])
        rgb[_outline(mask)] = tuple(bytes.fromhex(colors[lesion["label"]][1:]))
    return Image.fromarray(rgb)


def _at_display(
    stored: NDArray[np.bool_], shown: Display, *, size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Return a mask of the stored image on the display, each px from the one it lies in."""
    y_HW, x_HW = np.indices(size) + 0.5
    x_stored, y_stored = shown.to_display.inverse().points(x_HW, y_HW)
    rows, cols = stored.shape
    row_HW = np.floor(y_stored).astype(np.intp).clip(0, rows - 1)
    col_HW = np.floor(x_stored).astype(np.intp).clip(0, cols - 1)
    return stored[row_HW, col_HW]


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the px of a mask that touch its outside."""
    inside = np.pad(mask, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return mask & ~core


def _marks(pen: ImageDraw.ImageDraw, size: tuple[int, int], *, text_px: int) -> None:
    """Write the sides of the patient at the edges: R, L, anterior and posterior."""
    width, height = size
    for name, at, anchor in (
        ("R", (6, height / 2), "lm"),
        ("L", (width - 6, height / 2), "rm"),
        ("A", (width / 2, 6), "ma"),
        ("P", (width / 2, height - 6), "md"),
    ):
        _text(pen, at, name, size=text_px, anchor=anchor)


def _scale_bar(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], mm_per_px: float | None, *, text_px: int
) -> None:
    """Draw 5 cm at the lower right, unless the spacing is unknown or cannot be true."""
    width, height = size
    length = scale_bar_px(width, mm_per_px)
    if length is None:
        return
    x1, y = width - 10, height - 12
    pen.line((x1 - length, y, x1, y), fill=_SHADOW, width=6)
    pen.line((x1 - length, y, x1, y), fill=WHITE, width=2)
    for x in (x1 - length, x1):
        pen.line((x, y - 5, x, y + 5), fill=WHITE, width=2)
    _text(pen, (x1 - length / 2, y - 6), SCALE_BAR_TEXT, size=text_px, anchor="md")


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    size: int,
    color: str = WHITE,
    anchor: str = "la",
) -> None:
    """Write a text with a dark rim, so that it is legible on any grey."""
    pen.text(
        at, text, font=font(size), fill=color, anchor=anchor, stroke_width=2, stroke_fill=_SHADOW
    )
