"""The report of an output folder of `cctmn score`: counts, worklist, pages of studies, pictures."""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cctmn import schema, store, tables
from cctmn.errors import SLICE_CODES, DataError
from cctmn.report import (
    archive_page,
    archive_report,
    gallery,
    profile,
    study_page,
    study_slices,
    worklist,
)
from cctmn.report.archive import count, probability_of_disease, read
from cctmn.report.numbers import percent_text
from tests.commands import call, one_line
from tests.conftest import S3Server
from tests.report import scored
from tests.report.scored import a_slice, an_error, scan, with_mask
from tests.report.test_render import Page

CANARY = "Mustermann"


def written(out: Path, **options: Any) -> Path:
    """Write the report and return its folder."""
    return store.to_path(archive_report.write(str(out), **options).uri).parent


def page(folder: Path, name: str) -> Page:
    text = (folder / name).read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|url\((?!#)|@import", text)
    return Page(text)


def lines(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "worklist.csv").read_text())))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A sick study, a clean one, and one of which all slices abstain."""
    rows = scan("sick", 30, sick=6.0) + scan("clean", 20, sick=-4.0)
    rows += [a_slice("empty", 1.0 * n, abstained=True, flags=["no_lung"]) for n in range(3)]
    rows += [an_error("clean", "truncated"), an_error("clean", "localizer")]
    return scored.write(tmp_path / "out", rows)


def test_the_sickest_study_comes_first_and_one_without_an_answer_last(three: Path) -> None:
    folder = written(three)
    rows = lines(folder)
    assert [row["study_key"] for row in rows] == ["sick", "clean", "empty"]
    assert [row["pred_class"] for row in rows] == ["covid", "control", ""]
    assert float(rows[0]["p_disease"]) == pytest.approx(1 - float(rows[0]["p_control"]))
    assert [row["notes"] for row in rows] == [
        "",
        "1 slice not scored",
        "no answer: all slices abstained",
    ]
    table = page(folder, "worklist.html").text
    assert table.index("sick") < table.index("clean") < table.index("empty")


def test_first_page_counts_the_archive(three: Path) -> None:
    text = page(written(three), "index.html").text
    for part in (
        "studies 3 patients 3 series 3 slices 54",
        "found 55",
        "passed over 1",
        "errors 1",
        "scored 53",
        "abstained 3",
        SLICE_CODES["truncated"],
        schema.FLAGS["no_lung"],
        "5.5 slices per second",
        "8 ms per slice, mean",
        "stand-in",
    ):
        assert part in text, part


def test_the_number_that_chose_the_model_is_a_validation_number_with_its_patients() -> None:
    part = {"chosen_by": "accuracy", "value": 0.93, "slices": 90, "patients": 1200}
    text = "validation accuracy 0.930 on 90 slices of 1,200 patients"
    assert archive_page._validation(part) == text
    # Cards of earlier versions do not know the patients, and imported models have no such number.
    assert archive_page._validation(part | {"patients": None}) == text.partition(" of ")[0]
    assert archive_page._validation({}) == ""


def test_first_page_says_how_the_scores_were_computed(three: Path) -> None:
    assert "device and precision not recorded" in page(written(three), "index.html").text
    manifest = json.loads((three / "manifest.json").read_text())
    devices = {"an H100": 7, "an A100": 2}
    manifest["numerics"] = {"device": "cuda", "precision": "tf32", "devices": devices}
    (three / "manifest.json").write_text(json.dumps(manifest))
    assert "tf32 on GPUs (an H100, an A100)" in page(written(three), "index.html").text


def test_cautions_of_the_model_stand_above_all_numbers(three: Path) -> None:
    text = page(written(three), "index.html").text
    assert text.index("Made for tests.") < text.index("studies 3")
    assert "not fitted to labelled patients" in text
    manifest = json.loads((three / "manifest.json").read_text())
    manifest["model"]["trained"] = False
    manifest |= {"complete": False, "counts": {"pending": 7}, "exit_code": 3, "error_rate": 0.25}
    (three / "manifest.json").write_text(json.dumps(manifest))
    text = page(written(three), "index.html").text
    for part in ("random weights", "7 slices are still to be scored", "25.0 % of the slices"):
        assert part in text


def test_a_manifest_of_an_older_version_gets_the_notes_of_the_demo_model(three: Path) -> None:
    from cctmn.model.card import read_card

    manifest = json.loads((three / "manifest.json").read_text())
    del manifest["model"]["notes"]
    manifest["model"]["model_id"] = read_card("cctmn:demo").model_id
    (three / "manifest.json").write_text(json.dumps(manifest))
    assert "Trained on phantoms" in page(written(three), "index.html").text


def test_page_of_a_study_says_why(three: Path) -> None:
    folder = written(three)
    sick = page(folder, "studies/sick.html")
    for part in (
        "covid: any disease",
        "5 slices with the strongest evidence of disease decide",
        "5 of 30 used slices",
        "the likeliest disease is the class",
        "ggo 0.90, 15 × 11 mm, 98 mm²",
        "z 0.0 mm, towards the feet",
        schema.SERIES_REASONS["only_series"],
    ):
        assert part in sick.text, part
    assert "../worklist.html#s-1" in sick.values("href")
    assert "clean.html" in sick.values("href")
    assert "Made for tests." in sick.text
    assert "none of its slices has scores" in page(folder, "studies/empty.html").text
    assert SLICE_CODES["localizer"] in page(folder, "studies/clean.html").text


def test_a_fitted_rule_is_stated(three: Path) -> None:
    manifest = json.loads((three / "manifest.json").read_text())
    manifest["model"]["calibration"] = {
        "top_m": 5,
        "patient_intercept": -1.25,
        "patient_slope": 0.5,
    }
    (three / "manifest.json").write_text(json.dumps(manifest))
    folder = written(three)
    assert "sigmoid(−1.25 + 0.50 × logit" in page(folder, "studies/sick.html").text
    assert "not fitted" not in page(folder, "index.html").text


def test_links_between_pages_resolve(three: Path) -> None:
    folder = written(three)
    for path in folder.rglob("*.html"):
        for href in Page(path.read_text()).values("href"):
            if href.startswith("data:"):
                continue
            name, _, anchor = href.partition("#")
            target = path.parent / name if name else path
            assert target.is_file(), f"{path.name}: {href}"
            if anchor:
                assert anchor in Page(target.read_text()).values("id"), f"{path.name}: {href}"


def test_the_worklist_is_divided_into_pages(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklist, "PAGE_ROWS", 2)
    folder = written(three)
    assert "page 1 of 2" in page(folder, "worklist.html").text
    second = page(folder, "worklist-2.html").values("href")
    assert "studies/empty.html" in second
    assert "studies/sick.html" not in second
    assert "../worklist-2.html#s-3" in page(folder, "studies/empty.html").values("href")


def test_only_the_first_studies_get_a_page(three: Path) -> None:
    folder = written(three, studies=1)
    assert [path.name for path in folder.glob("studies/*")] == ["sick.html"]
    assert "studies/clean.html" not in page(folder, "worklist.html").values("href")
    assert "--studies all" in page(folder, "worklist.html").text
    assert len(lines(folder)) == 3


def test_pages_of_an_earlier_report_are_removed(three: Path) -> None:
    folder = written(three, studies=None)
    assert len(list(folder.glob("studies/*"))) == 3
    (folder / "notes.html").write_text("of a user")
    written(three, studies=1)
    assert len(list(folder.glob("studies/*"))) == 1
    assert (folder / "notes.html").exists()


def test_the_same_folder_gives_the_same_pages(three: Path) -> None:
    folder = written(three)
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written(three)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first


def test_batches_of_studies_hold_the_same_slices(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(three)
    first = {path.name: path.read_text() for path in folder.glob("studies/*")}
    monkeypatch.setattr(study_slices, "BATCH_SLICES", 1)
    written(three)
    assert {path.name: path.read_text() for path in folder.glob("studies/*")} == first


def test_pictures_without_a_header_are_listed_as_slices(tmp_path: Path) -> None:
    rows = [a_slice(None, None, sick=n / 10) for n in range(-60, 60)]
    out = scored.write(tmp_path / "out", rows)
    text = page(written(out), "index.html").text
    assert "pictures without a DICOM header belong to none" in text
    assert "Listed are the 100 with the strongest evidence" in text
    listed = [row["slice_id"] for row in count(read(str(out))).slices_listed]
    assert listed == [f"{n:032x}" for n in range(119, 19, -1)]


def test_a_folder_without_a_table_of_studies_lists_slices(tmp_path: Path) -> None:
    out = scored.write(tmp_path / "out", scan("one", 12, sick=5.0), table=False)
    folder = written(out)
    text = page(folder, "index.html").text
    assert "no table of studies" in text
    assert "12 scored slices are in no study" in text
    assert lines(folder) == []


def test_a_folder_of_the_previous_version_is_drawn(tmp_path: Path) -> None:
    import shutil

    previous = Path(__file__).parents[1] / "assets/previous/scored"
    out = Path(shutil.copytree(previous, tmp_path / "out"))
    assert "The archive at a glance" in page(written(out), "index.html").text


def test_scanners_are_shown_where_the_predictions_have_them(tmp_path: Path) -> None:
    rows = scan("a", 10, sick=4.0, manufacturer="ACME", kernel="B60f", slice_thickness_mm=1.25)
    rows += scan("b", 20, sick=4.0, manufacturer=None, kernel=None, slice_thickness_mm=None)
    folder = written(scored.write(tmp_path / "out", rows))
    text = page(folder, "index.html").text
    assert "Scanners and reconstructions" in text
    assert "ACME – B60f 1.25 – 10" in text
    assert "ACME, B60f, 1.25 mm" in page(folder, "studies/a.html").text
    newer = [column.name for column in schema.ACQUISITION_COLUMNS]
    older = scored.write(tmp_path / "older", scan("a", 5, sick=4.0), without=newer)
    assert "Scanners" not in page(written(older), "index.html").text


def test_areas_are_drawn_along_the_body_where_there_are_masks(tmp_path: Path) -> None:
    rows = [with_mask(row, 100 * (n % 3)) for n, row in enumerate(scan("a", 12, sick=4.0))]
    folder = written(scored.write(tmp_path / "out", rows, masks=True))
    text = page(folder, "studies/a.html").text
    assert "Area of lesions per slice" in text
    assert "98 0 z 0.0 mm" in text  # 200 px of 0.49 mm2
    assert "lesion volume" in text


def test_a_detector_ranks_by_lesions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored, "CLASSES", ())
    rows = [a_slice_of_detector("few", 1), a_slice_of_detector("many", 5)]
    folder = written(scored.write(tmp_path / "out", rows))
    assert [row["study_key"] for row in lines(folder)] == ["many", "few"]
    assert "sorted by the number of lesions" in page(folder, "index.html").text
    assert "knows no classes" in page(folder, "studies/many.html").text


def a_slice_of_detector(study: str, lesions: int) -> dict[str, Any]:
    row: dict[str, Any] = {"study_key": study, "series_key": f"{study}-1", "slice_z_mm": 0.0}
    row |= {"rows": 64, "cols": 64, "flags": [], "abstained": False, "error_code": ""}
    return row | {"model_id": "m", "num_lesions": lesions, "lesions": []}


def test_evidence_is_one_minus_the_share_of_control() -> None:
    p_NC = np.array([[0.2, 0.2, 0.4], [0.0, 0.0, 0.0]])
    first, none = probability_of_disease(p_NC, scored.CLASSES)
    assert first == pytest.approx(0.75)
    assert np.isnan(none)
    assert probability_of_disease(p_NC, ("a", "b", "c"))[0] == pytest.approx(0.4)


def test_only_certainty_is_shown_as_0_or_100_per_cent() -> None:
    shown = [percent_text(p) for p in (0.0, 1e-5, 0.123, 0.99999, 1.0, None)]
    assert shown == ["0.0", "<0.1", "12.3", ">99.9", "100.0", "–"]


def test_a_text_in_the_csv_is_not_a_formula(three: Path) -> None:
    row = worklist.build(
        [{"study_key": "=1+1", "patient_key": "@x", "num_used": 0}], (), top_m=5, pages=None
    )
    assert b'"\'=1+1","\'@x"' in worklist.to_csv(row, ())


def test_the_profile_breaks_at_a_gap_and_marks_abstained_slices() -> None:
    def one(z: float, **values: Any) -> study_slices.StudySlice:
        known = {"slice_id": str(z), "series": "s", "z_mm": z, "p_disease": 0.5, "num_lesions": 0}
        known |= {"area_mm2": float("nan"), "abstained": False, "code": "", "scanner": ()}
        return study_slices.StudySlice(**{**known, **values})

    slices = [one(0), one(1), one(2), one(50), one(51), one(3, abstained=True)]
    slices += [one(float("nan")), one(9, code="truncated")]
    drawn = profile.draw(slices, deciding=["1"])
    assert drawn is not None
    assert drawn.line.count("M") == 2
    assert drawn.deciding == "M19.6 100V50"
    assert drawn.abstained.count("M") == 1
    assert (drawn.num_used, drawn.num_unknown, drawn.area) == (5, 1, "")
    assert profile.draw(slices[:1], deciding=[]) is None


def test_a_lesion_is_measured_in_mm_by_its_own_scale_in_each_direction() -> None:
    lesion = {"x0": 0, "y0": 0, "x1": 10, "y1": 10, "score": 0.5, "label": "ggo", "mask_px": 50}
    scale = {"spacing_row_mm": 2.0, "spacing_col_mm": 0.5}
    assert study_page.lesion_text(lesion, scale) == "ggo 0.50, 5 × 20 mm, 50 mm²"
    assert study_page.lesion_text(lesion, {}) == "ggo 0.50, 10 × 10 px, 50 px²"


def test_pixels_that_are_not_square_are_drawn_square_in_mm() -> None:
    lesion = {"x0": 10, "y0": 10, "x1": 20, "y1": 20, "score": 0.5, "label": "ggo"}
    entry = {"slice_id": "a", "rows": 50, "cols": 100, "predicted": "covid", "lesions": [lesion]}
    entry |= {"spacing_row_mm": 1.4, "spacing_col_mm": 0.7}
    [case] = gallery.of_study([entry], classes=(), read=lambda _: None).groups[0].cases
    assert (case.width, case.height) == (100, 100)
    assert (case.boxes[0].y, case.boxes[0].height, case.boxes[0].width) == (20, 20, 10)


@pytest.fixture
def with_images(tmp_path: Path) -> Path:
    """An output folder whose three slices lie as PNGs in a folder with a name."""
    images = tmp_path / CANARY
    images.mkdir()
    rows = scan("sick", 3, sick=6.0)
    out = scored.write(tmp_path / "out", rows)
    inventory = []
    for row in rows:
        file = images / f"{row['slice_id']}_{CANARY}.png"
        Image.fromarray(np.arange(64 * 64).reshape(64, 64).astype(np.uint8)).save(file)
        known = dict.fromkeys(schema.INVENTORY.names) | {"slice_id": row["slice_id"]}
        known |= {"uri": file.as_uri(), "member": "", "container": "", "kind": "png", "frame": 0}
        known |= {"frames": 1, "occurrence": 0, "offset": 0, "flags": [], "error_code": ""}
        size = file.stat().st_size
        inventory.append(known | dict.fromkeys(("packed_size", "size", "object_size"), size))
    (out / "private/inventory").mkdir(parents=True)
    table = pa.Table.from_pylist(inventory, schema.INVENTORY)
    import pyarrow.parquet as pq

    pq.write_table(table, out / "private/inventory/g000000-000000.parquet")
    (out / "private/run.json").write_text(json.dumps({"inputs": [str(images)]}))
    return out


def test_pictures_lie_in_private_alone(with_images: Path) -> None:
    folder = written(with_images, pictures=True)
    assert folder == with_images / "private/report"
    assert not (with_images / "report").exists()
    study = folder / "studies/sick.html"
    assert study.read_text().count("data:image/png") == 3
    assert "keep it as private as the images" in Page(study.read_text()).text
    for path in folder.rglob("*.*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    plain = written(with_images)
    assert plain == with_images / "report"
    assert all("data:image" not in path.read_text() for path in plain.rglob("*.html"))


def test_an_image_that_is_gone_is_said_so(with_images: Path) -> None:
    for path in (with_images.parent / CANARY).iterdir():
        path.unlink()
    text = page(written(with_images, pictures=True), "studies/sick.html").text
    assert "the image is no longer where it was scored" in text


def test_no_name_leaves_private(with_images: Path) -> None:
    written(with_images)
    written(with_images, pictures=True)
    shown = [path for path in with_images.rglob("*") if path.is_file()]
    outside = [path for path in shown if "private" not in path.parts]
    assert any(path.name == "worklist.csv" for path in outside)
    assert [p for p in outside if CANARY.encode() in p.read_bytes()] == []
    names = {path.relative_to(with_images).as_posix() for path in outside}
    assert not any(CANARY in name for name in names)


def test_command_prints_the_page_and_checks_its_options(three: Path) -> None:
    done = call("report", three, "--studies", "all")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (three / "report/index.html").absolute().as_uri()
    assert call("report", three, "--studies", "0", "-q").stderr == ""
    assert list((three / "report").glob("studies/*")) == []
    one_line(call("report", three, "--studies", "some"), code=2, message="give a number or all")
    one_line(call("report", three / "predictions"), code=2, message="neither predictions nor")
    (three / "metrics.json").write_text("{}")
    one_line(call("report", three, "--pictures"), code=2, message="are for an output folder")


@pytest.mark.parametrize("content", ["[]", "no JSON"])
def test_a_damaged_manifest_is_one_line(three: Path, content: str) -> None:
    (three / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest.json is not"):
        archive_report.write(str(three))


def test_a_folder_without_a_manifest_is_drawn(three: Path) -> None:
    (three / "manifest.json").unlink()
    assert "studies 3" in page(written(three), "index.html").text


def test_report_is_written_to_s3(three: Path, s3: S3Server) -> None:
    s3.bucket("report")
    for path in three.rglob("*"):
        if path.is_file():
            s3.upload("report", f"out/{path.relative_to(three)}", path.read_bytes())
    done = archive_report.write("s3://report/out")
    assert done.uri == "s3://report/out/report/index.html"
    local = written(three)
    for name in ("worklist.csv", "studies/sick.html"):
        remote = store.read_all(f"s3://report/out/report/{name}").decode()
        at = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
        assert re.sub(at, "", remote) == re.sub(at, "", (local / name).read_text())


def test_a_study_of_900_slices_has_a_small_page(tmp_path: Path) -> None:
    folder = written(scored.write(tmp_path / "out", scan("a", 900, sick=6.0)))
    assert (folder / "studies/a.html").stat().st_size < 60_000


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """58,782 slices of 9,797 studies."""
    return scored.many(tmp_path_factory.mktemp("many") / "out", num_studies=9797, slices=6)


@pytest.mark.slow
def test_each_file_is_read_at_most_twice_even_if_all_studies_get_a_page(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    present = tables.read_present

    def counted(uri: str, columns: Any) -> pa.Table:
        reads.append(uri)
        return present(uri, columns)

    monkeypatch.setattr(tables, "read_present", counted)
    monkeypatch.setattr(store, "put", lambda *_, **__: None)
    monkeypatch.setattr(study_slices, "BATCH_SLICES", 6_000)
    done = archive_report.write(str(archive), studies=None)
    assert done.num_pages == 9797
    # A file at the border of two batches is read once more.
    assert len(reads) <= 2 * len(list(archive.glob("predictions/*.parquet"))) + 10


@pytest.mark.slow
def test_a_large_archive_is_not_held_in_memory(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "put", lambda *_, **__: None)
    tracemalloc.start()
    done = archive_report.write(str(archive), studies=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.num_pages == 100
    assert peak < 100e6
