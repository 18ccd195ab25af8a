"""A slice of the gallery: what is drawn, what is listed, and what stands below it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cctmn.evaluate.lesion_cases import outline
from cctmn.read.geometry import Turn
from cctmn.report import case_card, gallery, render
from cctmn.report.case_card import Case
from tests.report import made

ROWS, COLS = 40, 60
LESION = {"x0": 4.0, "y0": 8.0, "x1": 24.0, "y1": 18.0, "score": 0.9, "label": "ggo"}
ENTRY = {"slice_id": "a1", "rows": ROWS, "cols": COLS, "lesions": [LESION]}


def card(entry: dict[str, Any], **changes: Any) -> Case:
    picture = ("data:image/png;base64,", "")
    return case_card.build(entry | changes, classes=(), labels=["ggo"], picture=picture)


def turned(turn: Turn, **changes: Any) -> Case:
    shown = {name: getattr(turn, name) for name in ("transpose", "flip_rows", "flip_cols")}
    return card(made.detailed(ENTRY, **shown, **changes))


def page(tmp_path: Path, cases: dict[str, Any]) -> str:
    # Without curves, whose plots take a second.
    content = made.minimum() | {"cases": cases, "classes": list(made.CLASSES)}
    content["detection"] = made.metrics(cases=0)["detection"]
    return render.render(made.folder(tmp_path / "out", content, leave_out=0))


def point(matrix: str, x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = (float(value) for value in matrix[len("matrix(") : -1].split())
    return a * x + c * y + e, b * x + d * y + f


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("flip_cols", [False, True])
def test_boxes_and_outlines_follow_the_turn_of_the_picture(
    transpose: bool, flip_rows: bool, flip_cols: bool
) -> None:
    turn = Turn(transpose, flip_rows, flip_cols)
    stored = np.zeros((ROWS, COLS), bool)
    stored[8:18, 4:24] = True
    y, x = np.nonzero(turn.apply(stored))
    one = turned(turn)
    [box] = one.boxes
    assert (one.height, one.width) == turn.apply(stored).shape
    assert (box.x, box.y) == (x.min(), y.min())
    assert (box.x + box.width, box.y + box.height) == (x.max() + 1, y.max() + 1)
    corners = [point(one.transform, 4, 8), point(one.transform, 24, 18)]
    assert sorted(at for at, _ in corners) == [x.min(), x.max() + 1]
    assert sorted(at for _, at in corners) == [y.min(), y.max() + 1]


def test_a_turned_slice_with_pixels_that_are_not_square_is_square_in_mm() -> None:
    entry = made.detailed(ENTRY, transpose=True) | {"spacing_row_mm": 2.0, "spacing_col_mm": 0.5}
    one = card(entry)
    # 40 rows of 2 mm lie side by side, and 60 columns of 0.5 mm below each other.
    assert (one.width, one.height) == (40, 15)
    assert (one.boxes[0].width, one.boxes[0].height) == (10, 5)
    assert one.scale_bar == 25


def test_sides_are_marked_only_where_the_source_has_an_orientation(tmp_path: Path) -> None:
    case = made.metrics(cases=1)["cases"]["misses"][0]
    assert ">R</text>" in page(tmp_path / "known", {"misses": [case]})
    unknown = made.detailed(case, is_oriented=False)
    text = page(tmp_path / "unknown", {"misses": [unknown]})
    assert ">R</text>" not in text
    assert "Orientation unknown: shown as stored" in text


def test_a_turned_slice_says_so() -> None:
    assert turned(Turn(flip_cols=True)).note.endswith("left and right flipped.")
    assert turned(Turn()).note == ""


def test_a_scale_bar_needs_the_spacing() -> None:
    entry = made.detailed(ENTRY) | {"spacing_row_mm": 5.0, "spacing_col_mm": 5.0}
    assert card(entry).scale_bar == 10
    assert card(entry, spacing_row_mm=None, spacing_col_mm=None).scale_bar is None


def test_a_card_names_position_window_flags_patient_and_slice(tmp_path: Path) -> None:
    case = made.metrics(cases=1)["cases"]["misses"][0]
    text = page(tmp_path, {"misses": [case]})
    assert "z −120.5 mm, lung window -600/1500 HU" in text
    assert re.search(r'flags: <abbr title="The image was compressed with loss.">lossy', text)
    assert f"patient <code>{case['patient_key']}" in text
    assert f"slice <code>{case['slice_id']}" in text


def test_a_picture_without_hounsfield_units_has_no_window() -> None:
    one = turned(Turn(), is_oriented=False, window_center_hu=None, window_width_hu=None)
    assert one.window.startswith("picture without Hounsfield units")
    assert one.note == ""


def test_boxes_of_low_score_are_listed_and_not_drawn(tmp_path: Path) -> None:
    scores = [0.9, 0.5, 0.49] + [0.1] * 40
    lesions = [LESION | {"score": score} for score in scores]
    one = card(made.detailed(ENTRY), lesions=lesions)
    assert [box.score for box in one.boxes] == [0.9, 0.5]
    assert [lesion.score for lesion in one.listed] == scores[2 : 2 + case_card.LISTED]
    assert one.more == 41 - case_card.LISTED
    assert one.listed[0].size == "14 × 7 mm"
    text = page(tmp_path, {"hits": [made.detailed(ENTRY) | {"lesions": lesions}]})
    assert "with a score of 0.5 or more" in text
    assert "41 more below 0.5" in text
    assert f"and {one.more} with lower scores" in text


def test_true_lesions_are_drawn_with_a_legend(tmp_path: Path) -> None:
    case = made.metrics(cases=1)["cases"]["lowest_ap"][0]
    text = page(tmp_path, {"lowest_ap": [case]})
    for lesion in case["true_lesions"]:
        assert f'<path class="truth" d="{lesion["outline"]}"' in text
    assert "</svg> true lesion</span>" in text
    assert f"AP 0.25, 1 of {len(case['true_lesions'])} missed, 2 false" in text
    assert "overlap by an IoU above 0.5" in text
    assert "Images with lesion masks of the lowest AP at an IoU of 0.5;" in text
    plain = page(tmp_path / "plain", {"hits": made.metrics(cases=1)["cases"]["hits"]})
    assert "true lesion" not in plain


def test_an_outline_runs_along_the_edges_of_the_px() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert outline(mask) == "M2 1H5M2 3H5M2 1V3M5 1V3"
    assert outline(np.ones((2, 2), bool)) == "M0 0H2M0 2H2M0 0V2M2 0V2"


def test_an_outline_that_is_no_path_is_refused() -> None:
    lesion = LESION | {"outline": '"/><script>'}
    with pytest.raises(ValueError, match="not path data"):
        card(ENTRY, true_lesions=[lesion])


def test_patients_have_their_deciding_slices_in_a_row(tmp_path: Path) -> None:
    [patient] = made.metrics(cases=1)["cases"]["missed_patients"]
    text = page(tmp_path, {"missed_patients": [patient]})
    assert "Missed patients" in text
    assert "Falsely alarmed patients" not in text
    assert "the first 2 of 7 slices that decided, patient" in text
    row = text[text.index('<ul class="row">') :]
    assert row.count('<image href="data:image/png') == 2
    assert "This file holds 2 pictures" in text


def test_pictures_of_patients_are_smaller() -> None:
    [patient] = made.metrics(cases=1)["cases"]["missed_patients"]
    sizes = []
    for kind, entries in (("hits", patient["slices"]), ("missed_patients", [patient])):
        built = gallery.build(
            {kind: entries}, classes=made.CLASSES, read=lambda _: made.picture(1, side_px=512)
        )
        assert built.pictures == 2
        shown = built.groups[0].cases if built.groups else built.walls[0].patients[0].slices
        sizes.append(len(shown[0].picture))
    assert sizes[1] < sizes[0] / 2


def test_a_picture_opens_enlarged_without_a_script(tmp_path: Path) -> None:
    text = page(tmp_path, {"hits": made.metrics(cases=1)["cases"]["hits"]})
    assert re.search(r'<details class="zoom"><summary>\s*<span class="drawing">\s*<svg', text)
    assert "<script" not in text


def test_a_case_of_an_older_version_is_drawn_as_stored() -> None:
    one = card(ENTRY | {"truth": "covid", "predicted": "control", "p": {}})
    assert (one.is_oriented, one.note, one.window, one.place, one.flags) == (False, "", "", "", ())
    assert (one.boxes[0].x, one.boxes[0].y) == (4, 8)
    assert one.true_lesions is None
