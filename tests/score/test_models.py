"""A model folder as the scoring job uses it: its rule for lesions, and what makes runs differ."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cctmn import config
from cctmn.config import ScoreConfig
from cctmn.errors import ModelError
from cctmn.evaluate.model import EvaluatedModel
from cctmn.model import checkpoint
from cctmn.model.card import lesion_rule
from cctmn.score import models
from cctmn.score.run import ScoreJob
from tests.train.small import detector_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small detector whose card has the usual rule."""
    return detector_folder(tmp_path)


def job(folder: Path, **settings: float) -> ScoreJob:
    chosen = ScoreConfig(**settings)
    source = models.open_source(str(folder), lesion_nms_iou=chosen.lesion_nms_iou)
    return ScoreJob(["x"], out="out", source=source, settings=chosen)


def test_runs_of_two_nms_thresholds_differ_and_the_usual_one_is_as_before(folder: Path) -> None:
    usual, few = job(folder), job(folder, lesion_nms_iou=0.25)
    assert few.identity.differences(usual.identity) == [
        "model.lesions.nms_iou: 0.5 there, 0.25 here"
    ]
    assert job(folder, lesion_nms_iou=0.5).identity == usual.identity
    assert few.source.described["lesions"] == lesion_rule(nms_iou=0.25)


def test_the_setting_reaches_the_network_and_the_card_is_its_default(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.net.lesion_nms_iou == 0.5
    checkpoint.save(loaded.net, folder, card=replace(loaded.card, lesions=lesion_rule(nms_iou=0.7)))
    assert checkpoint.load(folder).net.lesion_nms_iou == 0.7
    for settings, expected in (({}, 0.7), ({"lesion_nms_iou": 0.25}, 0.25)):
        scorer = job(folder, **settings).source.load(False)
        assert scorer._predictor._nms_iou == expected  # type: ignore[attr-defined]


def test_the_setting_is_a_fraction() -> None:
    assert config.load(ScoreConfig, sets=["lesion_nms_iou=0.75"]).lesion_nms_iou == 0.75
    with pytest.raises(config.ConfigError, match=r"lesion_nms_iou: 1\.5 is above 1"):
        config.load(ScoreConfig, sets=["lesion_nms_iou=1.5"])


def test_an_evaluation_states_the_rule_of_the_lesions(folder: Path) -> None:
    described = job(folder, lesion_nms_iou=0.25).source.described
    shown = EvaluatedModel.from_description(described).as_json()
    assert shown["lesions"] == lesion_rule(nms_iou=0.25)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_scorer_that_is_given_a_gpu_does_not_run_on_the_cpu(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"a GPU that PyTorch cannot use; .*--device cpu"):
        job(folder).source.load(True)


def test_float32_on_a_gpu_is_not_tf32() -> None:
    """PyTorch's default for convolutions is TF32."""
    program = """
import torch
from cctmn.score.models import set_float32
convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
before = convolutions.fp32_precision
set_float32("ieee")
print(before, convolutions.fp32_precision, products.fp32_precision)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["tf32", "ieee", "ieee"]
