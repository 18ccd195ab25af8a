"""The model that ships, on phantoms that its training never saw."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cctmn.model import checkpoint
from cctmn.model.card import ASSETS, read_card
from cctmn.phantom import layouts
from tests.commands import call

pytestmark = pytest.mark.slow


def figures(*args: object) -> dict[str, float]:
    """What `cctmn models evaluate cctmn:demo` prints."""
    done = call("models", "evaluate", "cctmn:demo", *args, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def recorded(kind: str) -> dict[str, float]:
    return dict(read_card("cctmn:demo").provenance["measured"][f"unseen phantoms, {kind}"])


def test_its_weights_fit_its_card_and_its_card_states_its_use() -> None:
    weights = ASSETS / "demo" / "weights.safetensors"
    assert weights.stat().st_size <= 12_000_000
    card = checkpoint.load("cctmn:demo").card
    assert "not a medical device" in card.intended_use
    assert any("phantom" in note for note in card.notes)
    assert card.provenance["seed"] == 20


def test_it_classifies_unseen_phantoms(tmp_path: Path) -> None:
    layouts.write_slices(tmp_path, count=90, seed=5)
    metrics = figures("--slices", tmp_path)
    assert metrics["accuracy"] >= 0.97
    assert metrics["accuracy"] == pytest.approx(
        recorded("slices")["accuracy"], abs=0.012
    )  # one slice


def test_it_finds_lesions_of_unseen_phantoms(tmp_path: Path) -> None:
    layouts.write_lesions(tmp_path, count=40, seed=6)
    metrics = figures("--lesions", tmp_path)
    assert metrics["image_ap50"] >= 0.62
    assert metrics["image_ap50"] == pytest.approx(recorded("lesions")["image_ap50"], abs=0.02)


def test_it_calls_the_patients_of_whole_scans_by_their_few_sick_slices(
    cluster: str, tmp_path: Path
) -> None:
    """By the rule that its card was calibrated with."""
    truth = layouts.write_archive(tmp_path / "s.zip", patients=6, slices=20, seed=51, extent=0.25)
    done = call("score", tmp_path / "s.zip", "-o", tmp_path / "out", "-m", "cctmn:demo")
    assert done.returncode == 0, done.stderr
    assert "caution: Trained on phantoms" in done.stderr
    sick = {row["finding"] for row in truth if row["patient"] == 1}
    assert sick == {"control", "covid"}
    studies = pq.read_table(tmp_path / "out/studies/studies.parquet")
    called = Counter(studies["pred_class"].to_pylist())
    assert called == {"covid": 2, "pneumonia": 2, "control": 2}
