"""Draw a scored slice, or the slices that decide about a study, from their source files.

Reads: an output folder with OUT/private/inventory, and the objects that it names.
Writes: one PNG for its owner alone, because it shows a patient.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image

from cctmn import folder, store
from cctmn.contract import InputContract
from cctmn.errors import SLICE_CODES, ConfigError, DataError, SliceError
from cctmn.identity import RunIdentity
from cctmn.read.preview import decoded
from cctmn.read.slice import Slice
from cctmn.view import draw, page
from cctmn.view.find import Row, Selection, select

# A dozen slices can be taken in at once.
MAX_SLICES: Final = 12
SLICE_PX: Final = 800
TILE_PX: Final = 400


def view(out: str, text: str, *, to: str, full: bool = False) -> int:
    """Write the picture of the slice or study that `text` means; return its number of slices.

    With `full` every pixel of the stored images is visible. Raises DataError if there is no such
    slice or study, or if its source cannot be read.
    """
    if not to.lower().endswith(".png"):
        raise ConfigError("not a picture; give a file ending in .png", f"-o {to}")
    folder.check_target(out, to, private=True)
    selection = select(out, text, limit=MAX_SLICES)
    contract = input_contract(out)
    slices = _read(selection, text)
    picture = (_slice_page if selection.study is None else _study_page)(
        selection, slices, contract, full
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    store.put(store.to_uri(to), buffer.getvalue(), private=True)
    return len(slices)


def input_contract(out: str) -> InputContract:
    """Return the input contract of the model that scored OUT; the default if it is not recorded."""
    manifest = json.loads(
        store.read_optional(store.join(store.to_uri(out), "manifest.json")) or b"{}"
    )
    of_model = RunIdentity.read(manifest).values.get("model") or {}
    recorded = (manifest.get("model") or {}).get("input") or of_model.get("input")
    return InputContract.from_card(recorded) if recorded else InputContract()


def _read(selection: Selection, text: str) -> dict[str, Slice | SliceError]:
    """Return each slice, or why it cannot be read. Raises DataError if none can be."""
    if unknown := [
        r["slice_id"] for r in selection.rows if r["slice_id"] not in selection.inventory
    ]:
        raise DataError(
            f"private/inventory does not know slice {unknown[0]}; restore private/", text
        )
    slices = dict(decoded(list(selection.inventory.values())))
    failed = [one for one in slices.values() if isinstance(one, SliceError)]
    if len(failed) == len(slices):
        code = failed[0].code
        raise DataError(
            f"its source cannot be read, code {code}: {SLICE_CODES[code][:-1].lower()}; "
            "put it back, or run the job again",
            text,
        )
    return slices


def _slice_page(
    selection: Selection,
    slices: Mapping[str, Slice | SliceError],
    contract: InputContract,
    full: bool,
) -> Image.Image:
    [row] = selection.rows
    slice_ = slices[row["slice_id"]]
    assert isinstance(slice_, Slice)
    colors = _colors([row])
    shown = draw.display(slice_, contract, side_px=SLICE_PX, full=full)
    picture = draw.annotate(shown, row, colors=colors, text_px=page.TEXT_PX)
    lines = page.slice_lines(row, slice_, contract, classes=_classes(row), colors=colors)
    return page.beside(picture, lines)


def _study_page(
    selection: Selection,
    slices: Mapping[str, Slice | SliceError],
    contract: InputContract,
    full: bool,
) -> Image.Image:
    assert selection.study is not None
    colors = _colors(selection.rows)
    tiles = []
    for number, row in enumerate(selection.rows, start=1):
        slice_ = slices[row["slice_id"]]
        if isinstance(slice_, SliceError):
            blank = Image.new("RGB", (TILE_PX, TILE_PX), "#202020")
            tiles.append((blank, page.unread_lines(row, slice_.code, number=number)))
            continue
        shown = draw.display(slice_, contract, side_px=TILE_PX, full=full)
        picture = draw.annotate(shown, row, colors=colors, text_px=page.TEXT_PX - 2)
        tiles.append((picture, page.tile_lines(row, slice_, number=number)))
    title = page.study_lines(
        selection.study,
        shown=len(tiles),
        classes=_classes(selection.study),
        window=page.window_text(contract),
    )
    return page.sheet(tiles, title, columns=max(2, min(4, math.ceil(math.sqrt(len(tiles))))))


def _classes(row: Row) -> list[str]:
    """Return the image classes of a row; a detector has none."""
    return [name.removeprefix("p_") for name in row if name.startswith("p_")]


def _colors(rows: Any) -> dict[str, str]:
    """Return a colour for each class of lesions."""
    labels = sorted({lesion["label"] for row in rows for lesion in row["lesions"] or ()})
    return {label: draw.COLORS[i % len(draw.COLORS)] for i, label in enumerate(labels)}
