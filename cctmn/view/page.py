"""The text around pictures: a panel beside a slice, and a contact sheet of a study's slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image, ImageDraw

from cctmn import schema
from cctmn.contract import InputContract
from cctmn.errors import SLICE_CODES
from cctmn.read.geometry import Turn
from cctmn.read.slice import Slice
from cctmn.reporter import printable
from cctmn.view.draw import WHITE, font

PANEL_PX: Final = 420
MARGIN_PX: Final = 14
TEXT_PX: Final = 16
TITLE_PX: Final = 22
GREY: Final = "#b8b8b8"
WARNING: Final = "#ff8a7a"
BAR: Final = "#56c8f0"
# What fits beside a slice; the others are counted, and the surest come first.
LISTED_LESIONS: Final = 12
NOTICE: Final = "Research software, not a medical device."


@dataclass(frozen=True)
class TextLine:
    """One line of text; with `part`, from 0 to 1, a bar is drawn below it."""

    text: str
    size: int = TEXT_PX
    color: str = WHITE
    part: float | None = None


def beside(
    picture: Image.Image, lines: Sequence[TextLine], *, panel_px: int = PANEL_PX
) -> Image.Image:
    """Return the picture with the lines in a panel on its right."""
    wrapped = _wrap(lines, width_px=panel_px - 2 * MARGIN_PX)
    height = max(picture.height, _height(wrapped) + 2 * MARGIN_PX)
    page = Image.new("RGB", (picture.width + panel_px, height))
    page.paste(picture, (0, 0))
    _write(page, wrapped, x=picture.width + MARGIN_PX, width_px=panel_px - 2 * MARGIN_PX)
    return page


def sheet(
    tiles: Sequence[tuple[Image.Image, Sequence[TextLine]]],
    title: Sequence[TextLine],
    *,
    columns: int,
) -> Image.Image:
    """Return the pictures in rows, each above its lines, below the title."""
    tile_w = max(picture.width for picture, _ in tiles)
    tile_h = max(picture.height for picture, _ in tiles)
    width = columns * (tile_w + MARGIN_PX) + MARGIN_PX
    head = _wrap(title, width_px=width - 2 * MARGIN_PX)
    captions = [_wrap(lines, width_px=tile_w) for _, lines in tiles]
    caption_h = max(_height(lines) for lines in captions)
    step = tile_h + caption_h + 2 * MARGIN_PX
    top = _height(head) + 2 * MARGIN_PX
    page = Image.new("RGB", (width, top + step * -(-len(tiles) // columns)))
    _write(page, head, x=MARGIN_PX, width_px=width - 2 * MARGIN_PX)
    for i, ((picture, _), lines) in enumerate(zip(tiles, captions, strict=True)):
        row, col = divmod(i, columns)
        x, y = MARGIN_PX + col * (tile_w + MARGIN_PX), top + row * step
        page.paste(picture, (x + (tile_w - picture.width) // 2, y + (tile_h - picture.height) // 2))
        _write(page, lines, x=x, y=y + tile_h + 4, width_px=tile_w)
    return page


def slice_lines(
    row: Mapping[str, Any],
    slice_: Slice,
    contract: InputContract,
    *,
    classes: Sequence[str],
    colors: Mapping[str, str],
) -> list[TextLine]:
    """Return what the panel says about a slice."""
    lines = [TextLine(f"predicted: {row['pred_class']}", TITLE_PX)] if row["pred_class"] else []
    if row["abstained"]:
        lines.append(
            TextLine(
                "Abstained: outside what the model is made for. Do not use the scores.",
                color=WARNING,
            )
        )
    lines += bars(row, classes)
    lines += [TextLine(""), *_lesion_lines(row, colors)]
    lines += [TextLine(""), TextLine(f"z {_mm(row['slice_z_mm'])}"), TextLine(_size_text(row))]
    lines.append(TextLine(window_text(contract if slice_.unit == "hu" else None)))
    if note := _slice_note(slice_):
        lines.append(TextLine(note, color=WARNING))
    for flag in row["flags"] or ():
        color = WARNING if flag in schema.ABSTAIN_FLAGS else GREY
        lines.append(TextLine(f"{flag}: {schema.FLAGS.get(flag, '')}", TEXT_PX - 2, color))
    lines.append(TextLine(""))
    for what in ("slice_id", "patient_key", "study_key"):
        name = what.replace("_id", "").replace("_key", "")
        lines.append(TextLine(f"{name} {row[what] or 'unknown'}", TEXT_PX - 2, GREY))
    lines.append(TextLine(f"model {row['model_id']}. {NOTICE}", TEXT_PX - 2, GREY))
    return lines


def tile_lines(row: Mapping[str, Any], slice_: Slice, *, number: int) -> list[TextLine]:
    """Return what stands below a slice of a contact sheet."""
    lesions = f"{row['num_lesions']} lesion{'s' * (row['num_lesions'] != 1)}"
    p = row.get(f"p_{row['pred_class']}")
    score = "" if p is None else f"{row['pred_class']} {p:.3f}, "
    lines = [TextLine(f"{number}.  {score}{lesions}, z {_mm(row['slice_z_mm'])}")]
    lines.append(TextLine(row["slice_id"], TEXT_PX - 3, GREY))
    if note := _slice_note(slice_):
        lines.append(TextLine(note, TEXT_PX - 3, WARNING))
    if row["flags"]:
        lines.append(TextLine(f"flags: {', '.join(row['flags'])}", TEXT_PX - 3, GREY))
    return lines


def unread_lines(row: Mapping[str, Any], code: str, *, number: int) -> list[TextLine]:
    """Return what stands in place of a slice whose object cannot be read any more."""
    return [
        TextLine(f"{number}.  not shown: {code}", color=WARNING),
        TextLine(SLICE_CODES[code], TEXT_PX - 3, WARNING),
        TextLine(row["slice_id"], TEXT_PX - 3, GREY),
    ]


def study_lines(
    study: Mapping[str, Any], *, shown: int, classes: Sequence[str], window: str
) -> list[TextLine]:
    """Return the title of a contact sheet."""
    answer = study["pred_class"] or "no class"
    p = "   ".join(f"{n} {study[f'p_{n}']:.3f}" for n in classes if study[f"p_{n}"] is not None)
    volume = study["lesion_volume_ml"]
    counts = f"{study['num_used']:,} slices used of {study['num_slices']:,}"
    counts += f", {study['num_errors']:,} errors, {study['num_abstained']:,} abstained"
    if volume is not None:
        counts += f", lesions {volume:,.0f} mL"
    return [
        TextLine(f"study: {answer}    {p}", TITLE_PX),
        TextLine(f"{shown} deciding slices, by falling evidence of disease; {counts}; {window}"),
        TextLine(
            f"study {study['study_key']}    patient {study['patient_key'] or 'unknown'}    "
            f"model {study['model_id']}. {NOTICE}",
            TEXT_PX - 2,
            GREY,
        ),
    ]


def bars(row: Mapping[str, Any], classes: Sequence[str]) -> list[TextLine]:
    """Return the score of each class with its bar."""
    scores = ((name, row.get(f"p_{name}")) for name in classes)
    return [TextLine(f"{name}  {p:.3f}", part=p) for name, p in scores if p is not None]


def window_text(contract: InputContract | None) -> str:
    """Return the window that a slice is shown in; None stands for a picture without HU."""
    if contract is None:
        return "picture without Hounsfield units, grey values as stored"
    center, width = contract.window_center_hu, contract.window_width_hu
    return f"lung window {center:g}/{width:g} HU"


def turn_note(turn: Turn, *, is_unknown: bool) -> str:
    """Return how the stored image was turned, "" if it was not.

    `is_unknown` says that its header leaves the orientation open; a picture without a header has
    nothing to say.
    """
    if turn == Turn():
        if is_unknown:
            return "Orientation unknown: shown as stored, left and right may be swapped."
        return ""
    steps = [
        text
        for is_done, text in (
            (turn.transpose, "rows and columns exchanged"),
            (turn.flip_rows, "top and bottom flipped"),
            (turn.flip_cols, "left and right flipped"),
        )
        if is_done
    ]
    return f"Turned to the standard view: {', '.join(steps)}."


def _slice_note(slice_: Slice) -> str:
    is_unknown = slice_.unit == "hu" and not slice_.is_oriented
    return turn_note(slice_.turn, is_unknown=is_unknown)


def _lesion_lines(row: Mapping[str, Any], colors: Mapping[str, str]) -> list[TextLine]:
    lesions = row["lesions"] or []
    lines = [TextLine(f"lesions: {len(lesions)}")]
    pixel_mm2 = (row["spacing_row_mm"] or 0) * (row["spacing_col_mm"] or 0)
    for number, lesion in enumerate(lesions[:LISTED_LESIONS], start=1):
        area = (lesion["mask_px"] or 0) * pixel_mm2 / 100
        text = f"{number}  {printable(lesion['label'])}  {lesion['score']:.2f}"
        lines.append(
            TextLine(text + f"  {area:.1f} cm2" * bool(area), color=colors[lesion["label"]])
        )
    rest = len(lesions) - LISTED_LESIONS
    if rest > 0:
        lines.append(TextLine(f"and {rest} more with lower scores", color=GREY))
    return lines


def _size_text(row: Mapping[str, Any]) -> str:
    size = f"{row['rows']} x {row['cols']} px"
    across, down = row["spacing_col_mm"], row["spacing_row_mm"]
    if not across or not down:
        return f"{size}, spacing unknown"
    if abs(across - down) < 0.0005:
        return f"{size} of {across:.3f} mm"
    return f"{size}, rows {down:.3f} mm and columns {across:.3f} mm apart"


def _mm(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} mm"


def _wrap(lines: Sequence[TextLine], *, width_px: int) -> list[TextLine]:
    """Return the lines with long ones broken, at spaces where there are some."""
    wrapped = []
    for line in lines:
        current = ""
        for word in line.text.split(" "):
            longer = f"{current} {word}" if current else word
            if current and font(line.size).getlength(longer) > width_px:
                wrapped.append(TextLine(current, line.size, line.color, line.part))
                longer = word
            current = longer
        wrapped.append(TextLine(current, line.size, line.color, line.part))
    return wrapped


def _height(lines: Sequence[TextLine]) -> int:
    return sum(_step(line) for line in lines)


def _step(line: TextLine) -> int:
    if line.part is not None:
        return 2 * line.size  # the bar has a place of its own
    return round(1.4 * line.size) if line.text else line.size // 2


def _write(
    page: Image.Image, lines: Sequence[TextLine], *, x: int, width_px: int, y: int = MARGIN_PX
) -> None:
    pen = ImageDraw.Draw(page)
    for line in lines:
        if line.part is not None:
            bottom = y + _step(line) - 4
            pen.rectangle((x, bottom - 4, x + width_px, bottom), fill="#303030")
            pen.rectangle((x, bottom - 4, x + round(width_px * line.part), bottom), fill=BAR)
        pen.text((x, y), line.text, font=font(line.size), fill=line.color)
        y += _step(line)
