"""Masks of lesions in the predictions: asked for, on the stored image, refused without a head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from cctmn.config import ScoreConfig
from cctmn.errors import ConfigError
from cctmn.model.inference import paste
from cctmn.read.geometry import Affine, Turn
from cctmn.score import run
from cctmn.score.masks import on_stored
from tests.makers import png, stand_in

# pycocotools 2.0.11 decodes through an array interface that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def result(box, size=28):
    """One lesion whose whole box is mask."""
    return SimpleNamespace(
        mask_logits_M1SS=np.full((1, 1, size, size), 5, np.float32),
        boxes_M4=np.array([box], np.float32),
    )


def decoded(counts, stored_size):
    return rle.decode({"size": list(stored_size), "counts": counts})


def pasted(one, size):
    """The mask on the model's input, as the model itself counts it."""
    logits, boxes = torch.from_numpy(one.mask_logits_M1SS), torch.from_numpy(one.boxes_M4)
    [mask] = paste(logits, boxes, size=size)
    return mask.numpy()


def test_without_resize_the_mask_is_the_pasted_one():
    same, one, size = Affine(), result((4, 8, 20, 24)), (64, 48)
    [counts] = on_stored(one, to_stored=same, input_size=size, stored_size=size)
    mask = decoded(counts, size)
    np.testing.assert_array_equal(mask, pasted(one, size))
    assert mask[8:24, 4:20].all()


def test_a_mask_follows_a_larger_and_turned_image():
    """Twice the size, transposed, columns flipped: where the box goes, the mask goes."""
    turn, size, stored = Turn(transpose=True, flip_cols=True), (64, 48), (96, 128)
    one = result((4, 8, 20, 24))
    to_stored = Affine.from_turn_and_scale(
        turn, scale_row=0.5, scale_col=0.5, rows=stored[0], cols=stored[1]
    )
    [counts] = on_stored(one, to_stored=to_stored, input_size=size, stored_size=stored)
    expected = turn.undo(np.kron(pasted(one, size), np.ones((2, 2), np.uint8)))
    np.testing.assert_array_equal(decoded(counts, stored), expected)
    np.testing.assert_array_equal(turn.apply(expected), np.kron(pasted(one, size), np.ones((2, 2))))


def test_a_model_without_a_mask_head_is_refused_before_anything(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(1))
    job = run.ScoreJob(
        [str(tmp_path / "a.png")],
        out=str(tmp_path / "out"),
        source=stand_in(),
        settings=ScoreConfig(masks=True),
    )
    with pytest.raises(ConfigError, match="no mask head"):
        run.score(job)
    assert not (tmp_path / "out").exists()


def test_older_folders_keep_their_fingerprint():
    job = run.ScoreJob(["x"], out="out", source=stand_in())
    assert "masks" not in job.identity.values
    asked = dataclasses.replace(job, settings=ScoreConfig(masks=True))
    assert asked.identity.values == {**job.identity.values, "masks": True}
