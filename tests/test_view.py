"""Pictures of scored slices: which slice is meant, what is drawn where, and what is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cctmn import rle, store, studies
from cctmn.contract import InputContract
from cctmn.read import decode
from cctmn.read.geometry import Turn
from cctmn.read.slice import Slice
from cctmn.view import draw, page, run
from tests.commands import call, one_line
from tests.conftest import S3Server
from tests.evaluate.outputs import write_output
from tests.makers import dicom, png

STUDY = "abcdef" * 5 + "00"
NAMES = ("a.png", "b b.png", "c.dcm", "d.dcm", "bad.png", "late.png")
SLICE = f"{2:032x}"
BOX = {"x0": 4.0, "y0": 8.0, "x1": 24.0, "y1": 18.0, "score": 0.9, "label": "ggo", "mask_px": 9}
ROW = {"rows": 40, "cols": 60, "lesions": [BOX], "num_lesions": 1}


def write_results(folder: Path) -> Path:
    images = folder / "images"
    images.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (images / name).write_bytes(dicom(i) if name.endswith(".dcm") else png(i))
    of_study = (None, None, STUDY, STUDY, None, None)
    write_output(
        folder / "out",
        NAMES,
        np.tile([0.0, 1.0, 5.0], (len(NAMES), 1)),
        images=images,
        errors={"bad.png": "corrupt", "late.png": "pending"},
        columns={"study_key": of_study, "p_covid": [0.9] * 6, "pred_class": ["covid"] * 6},
    )
    studies.write(store.to_uri(str(folder / "out")), rule=studies.StudyRule("softmax"))
    return folder / "out"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def expected(out: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The picture of SLICE."""
    to = tmp_path_factory.mktemp("expected") / "x.png"
    picture(out, SLICE, to)
    return to.read_bytes()


def picture(out: Path | str, what: object, to: Path, *options: str) -> Image.Image:
    done = call("view", out, what, "-o", to, *options)
    assert done.returncode == 0, done.stderr
    return Image.open(io.BytesIO(to.read_bytes()))


def the_slice(turn: Turn, **changes: Any) -> Slice:
    """A slice of 40 x 60 stored px, black but for the inside of BOX."""
    stored = np.full((40, 60), -1350, np.float32)
    stored[8:18, 4:24] = 150
    plain = Slice(turn.apply(stored), "hu", turn, rows=40, cols=60, flags=frozenset())
    return dataclasses.replace(plain, **changes)


def bright(image: Image.Image) -> tuple[int, ...]:
    """The box of what is bright: x0, y0, x1, y1."""
    y, x = np.nonzero(np.asarray(image) > 128)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


@pytest.mark.parametrize(
    "what", [SLICE, "c.dcm", "images/c.dcm", "{images}/c.dcm", "file://{images}/c.dcm", "c.dcm#0"]
)
def test_a_slice_is_found_by_its_id_and_by_its_name(
    what: str, out: Path, expected: bytes, tmp_path: Path
) -> None:
    what = what.format(images=out.parent / "images")
    shown = picture(out, what, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o600
    assert shown.size == (run.SLICE_PX + page.PANEL_PX, run.SLICE_PX)
    assert (tmp_path / "x.png").read_bytes() == expected


def test_a_name_with_a_blank_is_found(out: Path, tmp_path: Path) -> None:
    assert picture(out, "b b.png", tmp_path / "x.png").size


def test_a_study_is_a_sheet_of_its_deciding_slices(out: Path, tmp_path: Path) -> None:
    done = call("view", out, STUDY[:6], "-o", tmp_path / "x.png")
    assert "2 slices:" in done.stderr
    with Image.open(tmp_path / "x.png") as shown:
        assert shown.width > 2 * run.TILE_PX
    assert picture(out, STUDY, tmp_path / "y.png", "--full").width > 2 * 512


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("000000", "000000: means 5 x slice; give more of its digits"),
        ("ffffff", "ffffff: no such slice or study; give a slice_id or study_key"),
        ("png", "no such slice or study"),
        ("bad.png", "has no score, code corrupt: the content breaks the rules of its own format;"),
        ("late.png", "not scored yet; run the job again to resume"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    what: str, message: str, out: Path, tmp_path: Path
) -> None:
    one_line(call("view", out, what, "-o", tmp_path / "x.png"), code=2, message=message)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_means_several_slices_is_refused(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    set_inventory(out, "member", ["1/x", "2/x", "x", "", "", ""])
    done = call("view", out, "x", "-o", tmp_path / "x.png")
    one_line(done, code=2, message="means 3 slices; add folder, ::MEMBER or #FRAME")
    assert picture(out, "c.dcm::x", tmp_path / "x.png").size


def set_inventory(out: Path, column: str, values: list[Any]) -> None:
    file = out / "private/inventory/g000000-000000.parquet"
    table = pq.read_table(file)
    at = table.column_names.index(column)
    array = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(at, column, array), file)


def test_a_source_that_is_gone_is_one_line(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    (tmp_path / "images/c.dcm").unlink()
    done = call("view", out, SLICE, "-o", tmp_path / "x.png")
    one_line(done, code=2, message="its source cannot be read, code not_found: the object")


def test_a_source_that_was_replaced_is_one_line(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    set_inventory(out, "etag", ["an older one"] * 6)
    done = call("view", out, SLICE, "-o", tmp_path / "x.png")
    one_line(done, code=2, message="its source cannot be read, code changed: the object was")


def test_a_study_is_shown_with_a_gap_where_one_source_is_gone(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    (tmp_path / "images/c.dcm").unlink()
    picture(out, STUDY, tmp_path / "x.png")
    (tmp_path / "images/d.dcm").unlink()
    done = call("view", out, STUDY, "-o", tmp_path / "x.png")
    one_line(done, code=2, message="its source cannot be read, code not_found")


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("x.jpg", "not a picture; give a file ending in .png"),
        ("{out}/x.png", "would identify patients in a folder that may be handed on"),
    ],
)
def test_a_file_that_cannot_be_is_refused(to: str, message: str, out: Path) -> None:
    one_line(call("view", out, SLICE, "-o", to.format(out=out)), code=2, message=message)


def test_without_the_private_folder_nothing_is_shown(tmp_path: Path) -> None:
    out = write_results(tmp_path)
    next((out / "private/inventory").iterdir()).unlink()
    for what in (SLICE, "c.dcm"):
        done = call("view", out, what, "-o", tmp_path / "x.png")
        one_line(done, code=2, message="no private/inventory, which has the names")


def test_an_output_folder_and_a_picture_on_s3(out: Path, expected: bytes, s3: S3Server) -> None:
    s3.bucket("view")
    for path in (path for path in out.rglob("*") if path.is_file()):
        s3.upload("view", f"out/{path.relative_to(out)}", path.read_bytes())
    done = call("view", "s3://view/out", SLICE, "-o", "s3://view/x.png")
    assert done.returncode == 0, done.stderr
    assert store.read_all("s3://view/x.png") == expected


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("flip_cols", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5)])
def test_a_box_is_drawn_around_its_lesion_however_the_image_was_turned(
    transpose: bool, flip_rows: bool, flip_cols: bool, spacing: tuple[float, float]
) -> None:
    turn = Turn(transpose=transpose, flip_rows=flip_rows, flip_cols=flip_cols)
    slice_ = the_slice(turn, spacing_row_mm=spacing[0], spacing_col_mm=spacing[1])
    shown = draw.display(slice_, InputContract(), side_px=600, full=False)
    box = np.array([[BOX[k] for k in ("x0", "y0", "x1", "y1")]])
    drawn = shown.to_display.boxes(box)[0]
    assert np.abs(drawn - bright(shown.grey)).max() <= 5


@pytest.mark.parametrize("transpose", [False, True])
def test_a_slice_is_square_in_mm(transpose: bool) -> None:
    slice_ = the_slice(Turn(transpose=transpose), spacing_row_mm=2.0, spacing_col_mm=0.5)
    shown = draw.display(slice_, InputContract(), side_px=600, full=False)
    size_mm = (80, 30) if transpose else (30, 80)  # 40 rows of 2 mm, 60 columns of 0.5 mm
    assert shown.grey.width / shown.grey.height == pytest.approx(size_mm[0] / size_mm[1], rel=0.01)
    assert shown.mm_per_px is not None
    assert shown.grey.width * shown.mm_per_px == pytest.approx(size_mm[0])


def test_full_shows_every_pixel_of_the_stored_image() -> None:
    slice_ = the_slice(Turn(), spacing_row_mm=0.5, spacing_col_mm=2.0)
    for full, least in ((False, 1), (True, 40)):
        shown = draw.display(slice_, InputContract(), side_px=60, full=full)
        assert shown.grey.height >= least
        assert (shown.grey.height >= 40) == full


def test_the_sides_of_the_patient_are_marked_only_if_they_are_known() -> None:
    def oriented(slice_: Slice) -> bool:
        return draw.display(slice_, InputContract(), side_px=60, full=False).is_oriented

    unknown = frozenset({"orientation"})
    assert oriented(the_slice(Turn()))
    assert oriented(the_slice(Turn(flip_cols=True), flags=unknown))
    assert not oriented(the_slice(Turn(), flags=unknown))
    assert not oriented(decode.open_image(png(1)).frame(0))


def test_the_outline_of_a_mask_follows_the_turn() -> None:
    mask = np.zeros((40, 60), bool)
    mask[8:18, 4:24] = True
    masks = [rle.encode(mask[None])[0]["counts"]]
    shown = draw.display(the_slice(Turn(flip_cols=True)), InputContract(), side_px=600, full=False)
    row = ROW | {"lesions": [BOX | {"x0": 0, "y0": 0, "x1": 1, "y1": 1}], "lesion_masks": masks}
    drawn = np.asarray(draw.annotate(shown, row, colors={"ggo": "#ff0000"}, text_px=8))
    y, x = np.nonzero((drawn == (255, 0, 0)).all(axis=-1)[:, :590])
    assert (x.min(), x.max() + 1) == pytest.approx((360, 560), abs=2)
    assert (y.min(), y.max() + 1) == pytest.approx((80, 180), abs=2)


def test_the_note_names_each_step_of_the_turn() -> None:
    turn = Turn(transpose=True, flip_cols=True)
    assert page.turn_note(turn, is_unknown=False) == (
        "Turned to the standard view: rows and columns exchanged, left and right flipped."
    )
    assert page.turn_note(Turn(), is_unknown=False) == ""
    unknown = page.turn_note(Turn(), is_unknown=True)
    assert unknown.startswith("Orientation unknown: shown as stored")


def test_the_window_is_the_one_of_the_model(tmp_path: Path) -> None:
    contract = InputContract(window_center_hu=-500, window_width_hu=1000)
    folder = str(tmp_path)
    assert run.input_contract(folder) == InputContract()
    text = '{"model": {"input": ' + str(contract.to_card()).replace("'", '"') + "}}"
    (tmp_path / "manifest.json").write_text(text)
    assert run.input_contract(folder) == contract
    assert page.window_text(contract) == "lung window -500/1000 HU"
