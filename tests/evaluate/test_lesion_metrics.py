"""Detected lesions against masks drawn by hand: the shipped model on phantoms, end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn.errors import ConfigError, DataError
from cctmn.evaluate import run
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.phantom import layouts
from cctmn.train import measure
from cctmn.train.datasets import Data
from tests.commands import call

pytestmark = pytest.mark.slow

SLICES = 8
PATIENTS = 2


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """Phantoms with lesions, scored with masks by the model that ships."""
    folder = tmp_path_factory.mktemp("lesions")
    layouts.write_lesions(folder / "data", count=SLICES, seed=6)
    (folder / "data/imgs/9_9.png").write_bytes((folder / "data/imgs/60000_0.png").read_bytes())
    done = call(
        *("score", folder / "data/imgs", "-o", folder / "out", "-m", "cctmn:demo"),
        *("--set", "masks=true", "-q"),
    )
    assert done.returncode == 0, done.stderr
    return folder


def options(folder: Path, **changes) -> EvaluationOptions:
    plain = EvaluationOptions(
        out=str(folder / "out"),
        to=str(folder / "eval"),
        masks=str(folder / "data"),
        resampling=Resampling(resamples=100),
        overwrite=True,
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def metrics(scored: Path) -> dict:
    return run.evaluate(options(scored))


def test_metrics_from_disk_equal_those_in_memory(scored, metrics):
    """A stored image of 512 x 512 px is the model's input, so there is no difference."""
    expected = measure.detections("cctmn:demo", data=Data(str(scored / "data")))
    for name in ("image_ap50", "image_ap75", "image_map", "coco_ap50", "coco_ap75", "coco_map"):
        metric = metrics["metrics"][f"detection.mask.{name}"]
        assert metric["value"] == pytest.approx(expected[name], abs=1e-6), name
        assert metric["n"] == SLICES
        assert metric["patients"] == PATIENTS
        assert (metric["low"] is None) == (metric["value"] < 1)  # too few, if there is an error
    assert metrics["metrics"]["detection.box.image_ap50"]["value"] > 0.7
    assert metrics["metrics"]["detection.froc.at_8"]["value"] > 0.8


def test_images_are_counted(metrics):
    about = metrics["detection"]
    assert (about["images"], about["joined"], about["missing"], about["errors"]) == (8, 8, 0, 0)
    assert (about["froc_of"], about["note"]) == ("mask", None)
    assert metrics["accounting"]["indexed"] == SLICES + 1
    assert metrics["curves"]["froc"]["x"][0] == 0


def test_the_hash_of_the_masks_is_that_of_their_content(scored, metrics, tmp_path):
    """A report knows by it whether two evaluations compared the same masks."""
    shutil.copytree(scored / "data", tmp_path / "data")
    same = run.evaluate(options(scored, to=str(tmp_path / "a"), masks=str(tmp_path / "data")))
    assert same["detection"]["masks_sha256"] == metrics["detection"]["masks_sha256"]
    masks = tmp_path / "data/masks"
    (masks / "60000_0.png").write_bytes((masks / "60001_0.png").read_bytes())
    other = run.evaluate(options(scored, to=str(tmp_path / "b"), masks=str(tmp_path / "data")))
    assert other["detection"]["masks_sha256"] != metrics["detection"]["masks_sha256"]


def test_slices_without_scores_count_in_the_worst_case(scored, tmp_path):
    """One row is removed and one made an error row, so that two of eight images have no scores."""
    shutil.copytree(scored / "out", tmp_path / "out")
    inventory = pq.read_table(tmp_path / "out/private/inventory").to_pylist()
    ids = {Path(row["uri"]).name: row["slice_id"] for row in inventory}
    gone, broken = ids["60000_0.png"], ids["60001_0.png"]
    for file in (tmp_path / "out/predictions").iterdir():
        rows = [row for row in pq.read_table(file).to_pylist() if row["slice_id"] != gone]
        for row in rows:
            row["error_code"] = "corrupt" if row["slice_id"] == broken else row["error_code"]
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)
    document = run.evaluate(options(tmp_path, masks=str(scored / "data")))
    about, by_id = document["detection"], document["metrics"]
    assert (about["joined"], about["missing"], about["errors"]) == (6, 1, 1)
    assert by_id["detection.mask.image_map"]["n"] == 6
    plain = by_id["detection.mask.image_map"]["value"]
    worst = by_id["worst_case.detection.mask.image_map"]["value"]
    assert worst == pytest.approx(plain * 6 / 8, abs=1e-6)
    assert any("2 of 8 slices with lesions have no scores" in w for w in document["warnings"])


def test_boxes_without_masks_give_a_note(scored, tmp_path):
    shutil.copytree(scored / "out", tmp_path / "out")
    for file in (tmp_path / "out/predictions").iterdir():
        pq.write_table(pq.read_table(file).drop_columns(["lesion_masks"]), file)
    document = run.evaluate(options(tmp_path, masks=str(scored / "data")))
    assert "--set masks=true" in document["detection"]["note"]
    assert not any(name.startswith("detection.mask") for name in document["metrics"])
    assert document["detection"]["froc_of"] == "box"


def test_unusable_options_raise_one_line(scored, tmp_path):
    with pytest.raises(ConfigError, match=r"give --labels LABELS, --masks DATA or both"):
        run.evaluate(options(scored, masks=None))
    layouts.write_lesions(tmp_path / "data", count=2, seed=9)
    with pytest.raises(DataError, match="none of its slices"):
        run.evaluate(options(scored, masks=str(tmp_path / "data")))
    with pytest.raises(DataError, match="masks"):
        run.evaluate(options(scored, masks=str(scored / "data/imgs")))
    shutil.copytree(scored / "out", tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    del manifest["model"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="give the model with -m"):
        run.evaluate(options(tmp_path, masks=str(scored / "data")))
    again = run.evaluate(options(tmp_path, masks=str(scored / "data"), model="cctmn:demo"))
    assert again["model"]["name"]
