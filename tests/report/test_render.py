"""The text of the report: its content, the errors it raises, and that it fetches nothing."""

from __future__ import annotations

import itertools
import json
import re
import stat
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cctmn.errors import DataError
from cctmn.metrics.metric import DRAWN_SCORE, Metric
from cctmn.report import gallery, plots, render
from cctmn.report.numbers import anchor, interval_text, naive_text, times_narrower, value_text
from tests.report import made

SIX = ("control", "pneumonia_bacterial", "pneumonia_viral_oth", "covid", "tuberculosis_active", "x")


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, attribute: str, *, tag: str | None = None) -> list[str]:
        return [a[attribute] or "" for t, a in self.tags if attribute in a and tag in (None, t)]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render.render(made.folder(tmp_path_factory.mktemp("full"), made.metrics()))


def rendered(tmp_path: Path, content: dict[str, Any], *, pictures: bool = False) -> str:
    return render.render(made.folder(tmp_path / "out", content, pictures=pictures))


def assert_sound(text: str) -> Page:
    """Check that links resolve, ids are unique, nothing is fetched, and headings are nested."""
    page = Page(text)
    ids = Counter(page.values("id"))
    assert [i for i, n in ids.items() if n > 1] == []
    hrefs = page.values("href")
    inside = [href[1:] for href in hrefs if href.startswith("#")]
    assert inside
    assert [href for href in inside if href not in ids] == []
    outside = {href for href in hrefs if not href.startswith(("#", "data:"))}
    assert outside == {"metrics.json", f"https://doi.org/{render.published.DOI}"}
    assert page.values("src") == []
    assert {href[:5] for href in page.values("href", tag="link")} == {"data:"}
    assert all(href.startswith("data:image/png") for href in page.values("href", tag="image"))
    assert not re.search(r"url\((?!#)|@import|xlink|xmlns", text)
    assert re.findall(r"https?://[^\"<\s]*", text) == [f"https://doi.org/{render.published.DOI}"]
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert levels.count(1) == 1
    labelled = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert all(a.get("role") == "img" and a.get("aria-label") for a in labelled)
    referenced = re.findall(r"url\(#([^)]+)\)", text)
    assert [name for name in referenced if name not in ids] == []
    return page


def test_page_has_all_sections(full: str) -> None:
    page = assert_sound(full)
    sections = set(page.values("id"))
    assert {
        "headline", "accounting", "paper", "slices", "calibration", "detection", "patients",
        "cohorts", "comparison", "gallery", "audit", "provenance", "appendix",
    } <= sections  # fmt: skip
    assert ("html", {"lang": "en"}) in page.tags
    assert page.text.count("not a medical device") >= 2
    assert page.text.index("Read this first") < page.text.index("Which interval to read")
    assert "Not evaluated in this run" not in page.text
    assert sum(tag == "image" for tag, _ in page.tags) == 8 + 8 + 8 + 2 + 2 - 1
    assert "no picture in private/cases" in page.text
    assert len(full.encode()) < 4_000_000


def test_a_cohort_that_is_not_shown_is_not_said_to_be_small(full: str) -> None:
    """It may be a large one, from which the metrics of a small one could be computed."""
    page = Page(full)
    assert page.text.count("fewer than 10 patients") == 1
    assert "Further cohorts are not shown where those metrics could be computed" in page.text


def test_every_metric_has_a_row_and_a_link_to_it(full: str) -> None:
    page = Page(full)
    content = made.metrics()
    ids, hrefs = set(page.values("id")), set(page.values("href"))
    assert {f"m-{name}" for name in content["metrics"]} <= ids
    assert {f"#m-{name}" for name in content["metrics"]} <= hrefs
    assert "m-cohort.sex.F.sensitivity.covid" in ids


def test_headline_shows_value_and_intervals(full: str) -> None:
    entry = made.metrics()["metrics"]["slice.accuracy"]
    metric = Metric.from_json("slice.accuracy", entry=entry)
    assert f'href="#m-slice.accuracy">{100 * entry["value"]:.1f}</a>' in full
    assert f'href="#m-slice.accuracy">{interval_text(metric)}</a>' in full
    assert f'href="#m-slice.accuracy">{naive_text(metric)}</a>' in full
    narrower = times_narrower(metric)
    assert narrower is not None
    assert f">{narrower:.1f}</a> times narrower" in full


def test_page_of_a_minimal_file(tmp_path: Path) -> None:
    text = rendered(tmp_path, made.minimum())
    page = assert_sound(text)
    assert "Classification was not evaluated in this run." in page.text
    for name in ("patient level", "cohorts", "gallery of cases", "audit of shared patients"):
        assert name in page.text
    assert "gallery" not in page.values("id")
    assert "<image" not in text


def test_any_section_may_be_absent_or_null(tmp_path: Path) -> None:
    complete = made.metrics(cases=0)
    optional = [name for name in complete if name not in made.minimum() or name == "cases"]
    assert len(optional) > 10
    for name in optional:
        absent = {key: value for key, value in complete.items() if key != name}
        assert_sound(rendered(tmp_path / name / "absent", absent))
        assert_sound(rendered(tmp_path / name / "null", complete | {name: None}))


def test_a_file_of_format_1_gives_the_same_page(tmp_path: Path) -> None:
    content = made.metrics(cases=0)
    older = made.format_1(content)
    assert "metrics" not in older
    assert rendered(tmp_path / "older", older) == rendered(tmp_path / "newer", content)
    older["labels"] |= {"slices": 58_782}
    known = rendered(tmp_path / "known", older)
    assert "there is no row here" not in known.split("Table 7.")[1].split("Table 8.")[0]


@pytest.mark.parametrize("classes", [("control", "covid"), SIX], ids=["two", "six"])
def test_pages_of_other_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    page = assert_sound(rendered(tmp_path, made.metrics(classes=classes, cases=1)))
    assert ("classes, so there is no row here" in page.text) == (len(classes) != 2)


def test_metrics_without_value_or_interval(tmp_path: Path) -> None:
    content = made.metrics(cases=0)
    for entry in content["metrics"].values():
        entry |= dict.fromkeys(("low", "high", "naive_low", "naive_high"))
    content["metrics"]["slice.accuracy"]["value"] = None
    content["metrics"]["slice.ppv.covid"]["value"] = float("nan")
    page = assert_sound(rendered(tmp_path, content))
    assert "no interval" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_text_of_the_file_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$1')</script>\"&"
    content = made.metrics(classes=("control", evil), cases=1)
    content["title"] = content["model"]["name"] = content["labels"]["name"] = evil
    content["warnings"] = [evil]
    content["versions"] = {evil: evil}
    content["comparison"]["name"] = evil
    content["accounting"]["labelled_errors"] = {evil: 2}
    content["cohorts"][0]["by"] = [evil]
    content["audit"]["sets"][0]["name"] = evil
    lesions = [{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "score": 0.5, "label": evil}]
    for kind in ("misses", "false_alarms", "hits", "lowest_ap"):
        [case] = content["cases"][kind]
        case |= {"lesions": lesions, "flags": [evil], "patient_key": evil}
    content["cases"]["missed_patients"][0]["patient_key"] = evil
    text = rendered(tmp_path, content, pictures=True)
    page = assert_sound(text)
    assert "<script" not in text
    assert "alert('$1')" in page.text
    assert "m-slice.sensitivity.~3cscript~3e" in text


def test_the_same_folder_gives_the_same_page(tmp_path: Path, full: str) -> None:
    assert render.render(made.folder(tmp_path / "again", made.metrics())) == full


def test_write_puts_the_page_beside_metrics_json(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "with pictures", made.metrics(cases=1))
    uri = render.write(folder)
    path = Path(folder) / "report.html"
    assert uri == path.as_uri()
    assert path.read_text(encoding="utf-8") == render.render(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # it holds what private/ held
    plain = made.folder(tmp_path / "plain", made.metrics(cases=0))
    render.write(plain)
    assert stat.S_IMODE((Path(plain) / "report.html").stat().st_mode) & 0o044


def test_write_on_s3(s3: Any, tmp_path: Path) -> None:
    s3.bucket("reports")
    folder = Path(made.folder(tmp_path / "out", made.metrics(cases=1)))
    for path in folder.rglob("*.*"):
        s3.upload("reports", f"eval/{path.relative_to(folder)}", path.read_bytes())
    assert render.write("s3://reports/eval/") == "s3://reports/eval/report.html"
    body = s3.client().get_object(Bucket="reports", Key="eval/report.html")["Body"].read()
    assert body.decode() == render.render(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no metrics.json in this folder; run `cctmn evaluate` first"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "format None, this version of cctmn reads 1 and 2"),
        (b'{"format": 3}', "format 3, this version of cctmn reads 1 and 2"),
        (b'{"format": 1}', "`classes, metrics, accounting` is malformed"),
        (b'{"format": 2}', "`classes, metrics, accounting` is malformed"),
        (b'{"format": 1, "classes": "abc", "figures": {}, "accounting": {}}', "is malformed"),
        (b'{"format": 1, "classes": [], "figures": {"a": 1}, "accounting": {}}', "is malformed"),
    ],
)
def test_unreadable_files_raise_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(DataError) as raised:
        render.render(str(tmp_path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


MALFORMED = [
    ("confusion", {"slice": {"matrix": [[1, 2]]}}),
    ("confusion", {"slice": 3}),
    ("curves", {"slice.roc.covid": {"x": [0, 1], "y": [0, 1, 2]}}),
    ("curves", {"reliability": {"confidence": [0.1], "accuracy": []}}),
    ("cohorts", [{"by": ["sex"], "cells": [{"values": []}]}]),
    ("cases", {"hits": [{"slice_id": "a"}]}),
    ("accounting", {"indexed": "many"}),
    ("bootstrap", {"level": "high"}),
    ("labels", {"slices": "many"}),
    ("model", ["a"]),
    ("audit", {"sets": ["a"]}),
    ("comparison", "b"),
]


def test_malformed_sections_raise_one_line_with_their_name(tmp_path: Path) -> None:
    complete = made.metrics(cases=0)
    for number, (name, broken) in enumerate(MALFORMED):
        with pytest.raises(DataError, match=name) as raised:
            rendered(tmp_path / str(number), complete | {name: broken})
        assert "\n" not in str(raised.value), name


# --- pictures


def test_boxes_are_drawn_in_px_of_the_slice(full: str) -> None:
    case = next(
        one for one in made.metrics()["cases"]["hits"] if one["lesions"][0]["score"] >= DRAWN_SCORE
    )
    assert f'<svg viewBox="0 0 {case["cols"]} {case["rows"]}" style=' in full
    lesion = case["lesions"][0]
    assert f'x="{lesion["x0"]:.1f}" y="{lesion["y0"]:.1f}"' in full
    assert f"</b> {lesion['label']} {lesion['score']:.2f}</span>" in full
    assert full.count('<rect class="under"') == full.count('<rect class="box b')


def test_lines_differ_without_colour() -> None:
    assert len(set(gallery.DASHES)) == 6
    assert len(set(plots.DASHES)) == len(set(plots.CLASSES)) == 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no picture in private/cases"),
        (b"GIF89a", "the file in private/cases is not a PNG"),
    ],
)
def test_a_missing_picture_has_a_reason(data: bytes | None, reason: str) -> None:
    cases = made.metrics(cases=1)["cases"]
    built = gallery.build(cases, classes=made.CLASSES, read=lambda name: data)
    cases_shown = [case for group in built.groups for case in group.cases]
    cases_shown += built.walls[0].patients[0].slices
    assert (built.pictures, built.missing) == (0, len(cases_shown)) == (0, 6)
    assert all(reason in case.no_picture for case in cases_shown)


def test_a_damaged_picture_of_a_patient_is_left_out() -> None:
    cases = {"missed_patients": made.metrics(cases=1)["cases"]["missed_patients"]}
    data = gallery.PNG + b"no picture"
    built = gallery.build(cases, classes=made.CLASSES, read=lambda name: data)
    assert "not a PNG" in built.walls[0].patients[0].slices[0].no_picture


def test_pictures_beyond_the_budget_are_left_out() -> None:
    data = gallery.PNG + bytes(gallery.BUDGET_BYTES // 2)
    cases = made.metrics(cases=3)["cases"]
    built = gallery.build({"hits": cases["hits"]}, classes=made.CLASSES, read=lambda name: data)
    shown = [case.no_picture for case in built.groups[0].cases]
    assert shown[0] == ""
    assert "left out to keep this file small" in shown[2]


def test_a_slice_id_is_not_used_as_a_path() -> None:
    cases = {"hits": [made.metrics(cases=1)["cases"]["hits"][0] | {"slice_id": "../../etc/x"}]}
    asked: list[str] = []
    gallery.build(cases, classes=made.CLASSES, read=lambda name: asked.append(name))
    assert asked == []


# --- curves


@pytest.mark.parametrize("draw", [plots.roc, plots.pr])
def test_names_move_below_a_plot_whose_curves_run_through_their_corner(draw: Any) -> None:
    x = [0.0, 0.5, 1.0]
    good = plots.line("a$b$c", index=0, points={"x": x, "y": [0.9, 1.0, 0.9]})
    poor = plots.line("<b>", index=1, points={"x": x, "y": [0.1, 0.1, 0.1]})
    assert good
    assert poor
    heights = []
    for lines in ([good], [good, poor]):
        svg = draw(lines, name="n", label='"')
        assert "a$b$c" in svg
        assert 'aria-label="&quot;"' in svg
        heights.append(float(svg.split('viewBox="0 0 360 ')[1].split('"')[0]))
    assert "&lt;b&gt;" in svg
    assert heights == [plots.HEIGHT_PX, plots.HEIGHT_PX + 14 + 2 * plots.ROW_PX]


@pytest.mark.parametrize("draw", [plots.roc, plots.pr])
def test_no_mark_stands_on_a_curve(draw: Any) -> None:
    """A reader takes a dot on a ROC curve for an operating point."""
    curve = plots.line("covid", index=0, points={"x": [0.0, 0.1, 1.0], "y": [0.9, 0.9, 1.0]})
    assert curve
    ticks = 2 * 5
    assert draw([curve], name="n", label="").count("<use") == ticks


def test_a_curve_needs_two_known_points() -> None:
    points = {"x": [0.1, None, 0.3], "y": [0.5, 0.5, float("nan")]}
    assert plots.line("a", index=0, points=points) is None


# --- numbers


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("slice.accuracy", 0.91664, "91.7"),
        ("calibration.brier", 0.1184, "0.118"),
        ("difference.slice.accuracy", 0.0126, "+1.3"),
        ("difference.slice.accuracy", -0.004, "−0.4"),
        ("difference.slice.accuracy", -0.00001, "+0.0"),
        ("slice.accuracy", None, "–"),
    ],
)
def test_values_as_text(name: str, value: float | None, text: str) -> None:
    assert value_text(Metric.from_json(name, entry={"value": value})) == text


def test_anchors_are_valid_and_distinct() -> None:
    names = ["slice.accuracy", "a b", "a~20b", "a%20b", "ä", 'a"b']
    anchors = [anchor(name) for name in names]
    assert anchors[0] == "m-slice.accuracy"
    assert len(set(anchors)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]+", one) for one in anchors)


def test_under_8_s(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "out", made.metrics(), leave_out=0)
    begun = time.process_time()
    render.render(folder)
    assert time.process_time() - begun < 8


def test_fixture_is_json() -> None:
    assert json.loads(json.dumps(made.metrics(cases=1))) == made.metrics(cases=1)
