"""Several evaluations on one page: side by side if they are of the same labels, else one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cctmn.report import render
from tests.commands import call, one_line
from tests.report import made
from tests.report.test_render import assert_sound

VARIANTS = {"s": "S", "s+bn": "S + batch norm", "all": "all weights"}


def content(name: str, *, variant: str = "s", seed: int = 0) -> dict[str, Any]:
    """An evaluation of the same labels with other numbers."""
    result = made.metrics(cases=0, seed=seed)
    result["labels"] = made.metrics(cases=0)["labels"]
    result["model"]["name"] = name
    result["model"]["training"]["settings"]["variant"] = variant
    return result


def put(folder: Path, contents: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(contents))
    return str(folder)


@pytest.fixture
def variants(tmp_path: Path) -> list[str]:
    """The three variants of Table 4."""
    return [
        put(tmp_path / str(seed), content(name, variant=variant, seed=seed))
        for seed, (variant, name) in enumerate(VARIANTS.items())
    ]


def test_three_variants_stand_in_one_table_with_their_intervals(variants: list[str]) -> None:
    done = call("report", variants[0], "--with", variants[1], "--with", variants[2])
    assert done.returncode == 0, done.stderr
    text = (Path(variants[0]) / "report.html").read_text()
    assert_sound(text)
    for part in (text.split('id="runs"')[1], text.split('id="table-4"')[1].split("</table>")[0]):
        for seed in range(3):
            accuracy = content("x", seed=seed)["metrics"]["slice.accuracy"]
            assert f">{100 * accuracy['value']:.2f}</a>" in part
            assert f">{100 * accuracy['low']:.2f}–{100 * accuracy['high']:.2f}</a>" in part
    of_table_4 = text.split('id="table-4"')[1].split("</table>")[0]
    assert of_table_4.count('class="ours"') == 3
    assert of_table_4.index("all weights") < of_table_4.index("90.80")  # published rows are below


def test_every_number_of_another_run_has_a_row_in_the_appendix(variants: list[str]) -> None:
    text = render.render(variants[0], others=variants[1:])
    assert 'id="m-run-2.slice.accuracy"' in text
    assert 'id="m-run-3.detection.mask.image_map"' in text


def test_a_run_alone_has_no_table_of_runs(variants: list[str]) -> None:
    assert 'id="runs"' not in render.render(variants[0])


def test_published_rows_need_the_published_set(tmp_path: Path) -> None:
    contents = [content(name, seed=seed) for seed, name in enumerate("ab")]
    for one in contents:
        one["labels"] = {**one["labels"], "known_set": None}
    folders = [put(tmp_path / str(k), one) for k, one in enumerate(contents)]
    text = render.render(folders[0], others=folders[1:])
    of_table_4 = text.split('id="table-4"')[1].split("</section>")[0]
    assert "These runs evaluated other slices (21,191)" in of_table_4
    assert 'class="ours"' not in of_table_4
    assert 'id="m-run-2.slice.accuracy"' in text


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [put(tmp_path / str(k), content("net", seed=k)) for k in range(2)]
    text = render.render(folders[0], others=folders[1:])
    assert "net (run 1)" in text
    assert "net (run 2)" in text


def test_warnings_of_another_run_are_shown_with_its_name(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    two["warnings"] = ["7 slices are pending."]
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    assert "two: 7 slices are pending." in render.render(folders[0], others=folders[1:])


def test_the_same_published_set_in_two_files_is_the_same_labels(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    two["labels"] = {**two["labels"], "name": "test.parquet", "sha256": "0" * 64}
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    assert 'id="runs"' in render.render(folders[0], others=folders[1:])


def test_a_run_of_other_labels_is_refused_in_one_line(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    other = {"name": "b.csv", "sha256": "0" * 64, "slices": 40, "by_class": {}, "known_set": None}
    two["labels"] = {**two["labels"], **other}
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    done = call("report", folders[0], "--with", folders[1])
    one_line(done, code=2, message="has other labels (40 slices) than the first run (21,191)")
    assert "2/metrics.json" in done.stderr
    assert "evaluate it with the same --labels, or report it alone" in done.stderr
    assert "(b.csv and test_COVIDx_CT-1.txt)" in done.stderr
    assert not (tmp_path / "1/report.html").exists()


def test_the_same_file_read_as_other_classes_is_other_labels(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    two["labels"] = {**two["labels"], "by_class": {"control": 21_191}}
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    one_line(call("report", folders[0], "--with", folders[1]), code=2, message="has other labels")


def test_a_run_of_other_masks_is_refused_in_one_line(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    two["detection"]["masks_sha256"] = "0" * 64
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    done = call("report", folders[0], "--with", folders[1])
    one_line(done, code=2, message="has other lesion masks (100 images)")
    del two["detection"]["masks_sha256"]
    folders[1] = put(tmp_path / "3", two)
    done = call("report", folders[0], "--with", folders[1])
    one_line(done, code=2, message="did not record which masks it compared")


def test_a_run_of_lesions_has_nothing_in_common_with_one_of_classes(tmp_path: Path) -> None:
    one, two = content("one"), content("two", seed=1)
    del one["detection"], two["labels"]
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    done = call("report", folders[0], "--with", folders[1])
    one_line(done, code=2, message="has nothing in common with the first run")


def test_detectors_stand_in_table_6(tmp_path: Path) -> None:
    folders = []
    for k in range(2):
        one = content(f"detector {k}", seed=k)
        one = {**one, "classes": [], "labels": None, "training": None, "confusion": None}
        one["metrics"] = {i: m for i, m in one["metrics"].items() if i.startswith("detection.")}
        folders.append(put(tmp_path / str(k), one | {"curves": {}, "cohorts": None}))
    text = render.render(folders[0], others=folders[1:])
    assert text.split('id="table-6"')[1].split("</table>")[0].count('class="ours"') == 2
    assert "These runs did not evaluate classes" in text
    assert "lacks: stage 2, because it is a detector" in text


@pytest.mark.parametrize("name", ["labels", "model", "model_size", "training", "detection"])
def test_a_malformed_section_of_another_run_names_its_file(tmp_path: Path, name: str) -> None:
    one, two = content("one"), content("two", seed=1)
    two[name] = ["x"]
    folders = [put(tmp_path / "1", one), put(tmp_path / "2", two)]
    done = call("report", folders[0], "--with", folders[1])
    one_line(done, code=2, message="is malformed")
    assert "2/metrics.json" in done.stderr


def test_a_run_given_twice_is_refused(variants: list[str]) -> None:
    done = call("report", variants[0], "--with", variants[0])
    one_line(done, code=2, message="given twice; give each run once")


def test_a_folder_without_an_evaluation_is_refused(variants: list[str], tmp_path: Path) -> None:
    done = call("report", variants[0], "--with", tmp_path)
    one_line(done, code=2, message="run `cctmn evaluate` first")


def test_scored_slices_have_no_other_runs(variants: list[str], tmp_path: Path) -> None:
    done = call("report", tmp_path, "--with", variants[0])
    one_line(done, code=2, message="--with is for a folder of `cctmn evaluate`")
