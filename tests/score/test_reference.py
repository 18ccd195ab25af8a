"""The whole command on real slices with published weights, and on the corpus of odd files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as rle

from cctmn import tables
from cctmn.contract import InputContract
from cctmn.read import fetch
from cctmn.read.decode import open_image
from cctmn.read.preprocess import to_input
from tests.commands import call
from tests.score.conftest import manifest, predictions

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ONE = ("--set", "actors=1")


@pytest.fixture(scope="module")
def classifier(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    pth = shared / "reference/classification_model_r18t1.pth"
    assert call("models", "import", pth, "-o", folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def corpus(
    shared: Path, classifier: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """The corpus, the output of scoring it and the real slices, and the log of that."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    folder = shared / "data" / "corpus"
    done = call("score", folder, shared / "data" / "ct_slices", "-o", out, "-m", classifier, *ONE)
    assert done.returncode == 3, done.stderr
    return folder, out, done.stdout + done.stderr


def by_file(out: Path) -> dict[str, dict[str, Any]]:
    return {name.split("::")[0]: row for name, row in predictions(out).items()}


def test_every_slice_gets_the_authors_logits(shared: Path, corpus: tuple[Path, Path, str]) -> None:
    expected = json.loads((shared / "reference/classification_expected.json").read_text())
    out = corpus[1]
    names = {
        row["slice_id"]: row["uri"].rsplit("/", 1)[1]
        for table in tables.inventory((out / "private/inventory").as_uri())
        for row in table.to_pylist()
        if "/ct_slices/" in row["uri"]
    }
    scored = tables.rows((out / "predictions").as_uri())
    rows = {names[row["slice_id"]]: row for row in scored if row["slice_id"] in names}
    assert rows.keys() == expected.keys()
    classes = ("control", "pneumonia", "covid")
    for name, there in expected.items():
        here = [rows[name][f"logit_{c}"] for c in classes]
        np.testing.assert_allclose(here, there["logits"], atol=1e-3, err_msg=name)
        assert rows[name]["pred_class"] == classes[int(np.argmax(there["logits"]))]


def test_a_detector_alone_writes_its_lesions(shared: Path, cluster: str, tmp_path: Path) -> None:
    model, out = tmp_path / "m", tmp_path / "out"
    pth = shared / "reference/segmentation_model_r18t1.pth"
    assert call("models", "import", pth, "-o", model).returncode == 0
    expected = json.loads((shared / "reference/segmentation_expected.json").read_text())
    (tmp_path / "in").mkdir()
    for name in expected:
        (tmp_path / "in" / name).symlink_to(shared / "data/ct_slices" / name)
    done = call("score", tmp_path / "in", "-o", out, "-m", model, "--set", "masks=true", *ONE)
    assert done.returncode == 0, done.stderr
    rows = by_file(out)
    labels = {1: "ggo", 2: "consolidation"}
    for name, there in expected.items():
        assert "pred_class" not in rows[name] or rows[name]["pred_class"] is None
        assert rows[name]["num_lesions"] == len(there)
        for here, lesion in zip(rows[name]["lesions"], there, strict=True):
            assert here["label"] == labels[lesion["label"]]
            box = [here[k] for k in ("x0", "y0", "x1", "y1")]
            np.testing.assert_allclose(box, lesion["box"], atol=0.5)
            assert here["score"] == pytest.approx(lesion["score"], abs=1e-3)
            assert here["mask_px"] == pytest.approx(lesion["mask_px"], rel=0.01)
        for here, counts in zip(rows[name]["lesions"], rows[name]["lesion_masks"], strict=True):
            size = [rows[name]["rows"], rows[name]["cols"]]
            area = int(rle.area({"size": size, "counts": counts}))
            assert area == pytest.approx(here["mask_px"], rel=0 if size == [512, 512] else 0.05)


def test_the_corpus_is_judged_as_its_manifest_says(
    corpus: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """No file without a row, nothing silently wrong, equal groups equal, nothing leaked."""
    folder, out, output = corpus
    places = {
        row["slice_id"]: row
        for table in tables.inventory((out / "private/inventory").as_uri())
        for row in table.to_pylist()
    }
    rows = [
        {  # logits, for probabilities of 0 or 1 hide differences
            "source": unquote(places[row["slice_id"]]["uri"]),
            "status": "error" if row["error_code"] else "ok",
            "error_code": row["error_code"],
            "warnings": " ".join(row["flags"]),
            **{f"p_{c}": row[f"logit_{c}"] for c in ("control", "pneumonia", "covid")},
        }
        for row in tables.rows((out / "predictions").as_uri())
        if "/corpus/" in places[row["slice_id"]]["uri"]
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "said.txt").write_text(output)
    options = ["--scores", "p_control,p_pneumonia,p_covid", "-v", "--leak", out / "predictions"]
    checked = subprocess.run(
        [
            *(sys.executable, folder / "check_results.py", tmp_path / "rows.parquet"),
            *(*options, out / "manifest.json", tmp_path / "said.txt"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"RESULT \{'PASS': (\d+)\} of \1 ;", checked), checked
    # a lossy, turned or padded copy of a slice is in its group only nearly, marked with ~
    lines = csv.DictReader(io.StringIO((folder / "manifest.csv").read_text("utf-8"), newline=""))
    nearly = {line["file"] for line in lines if line["equiv_group"].startswith("~")}
    assert checked.count("EQUIV") >= 9
    assert set(re.findall(r"\('([^']+)', [\d.]+\)", checked)) <= nearly, checked
    # the table written here for the check names the files; nothing of ours may
    leaks = re.search(r"PHI LEAKS: (.*)", checked)
    assert leaks is not None
    assert set(re.findall(r"'([^']+)'\)", leaks[1])) <= {"rows.parquet"}, checked
    assert "PATH ESCAPES: none" in checked
    assert manifest(out)["counts"]["pending"] == 0


def test_pixels_of_what_was_scored_are_the_golden_ones(corpus: tuple[Path, Path, str]) -> None:
    """Windowed pixels at original size, in stored orientation, of every file to be scored."""
    folder, out, _ = corpus
    manifest_lines, golden_lines = (
        list(csv.DictReader(io.StringIO((folder / name).read_text("utf-8"), newline="")))
        for name in ("manifest.csv", "golden_pixels.csv")
    )
    scored = {line["file"] for line in manifest_lines if line["expected"] == "scored"}
    golden: dict[tuple[str, str, int], list[str]] = {}
    for line in golden_lines:
        place = (line["file"], line["member"], int(line["frame"]))
        golden.setdefault(place, []).append(line["win_sha16"])
    result: dict[tuple[str, str, int], list[str]] = {}
    rows = [
        row
        for table in tables.inventory((out / "private/inventory").as_uri())
        for row in table.to_pylist()
        if "/corpus/" in row["uri"] and not row["error_code"]
    ]
    for group, data in fetch.fetch(rows, threads=2):
        file = unquote(group[0]["uri"]).split("/corpus/")[1]
        if file not in scored or isinstance(data, Exception):
            continue
        image = open_image(data)
        for row in group:
            place = (file, row["member"], row["frame"])
            if place in golden:
                slice_ = image.frame(row["frame"])
                as_is = InputContract(size_px=min(slice_.pixels.shape), max_size_px=8192)
                pixels = to_input(slice_, as_is).pixels
                result.setdefault(place, []).append(hashlib.sha256(pixels).hexdigest()[:16])
    # its golden pixels keep the bright ring of padding; the manifest wants it to be air
    padded = ("dicom_odd/x_padding_bright_4095.dcm", "", 0)
    wanted = {place: hashes for place, hashes in golden.items() if place[0] in scored}
    assert result.keys() == wanted.keys()
    different = {p for p, hashes in result.items() if sorted(hashes) != sorted(wanted[p])}
    assert different == {padded}
