"""A scorer on a GPU goes on with smaller batches, or ends after an error of CUDA."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from cctmn.errors import ModelError
from cctmn.score import models
from cctmn.score.models import NetScorer
from tests.train.small import detector_folder


class SmallMemory:
    """A predictor whose memory holds so many slices; it gives back what it was given."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[int] = []

    def predict(self, images, *, masks):
        self.batches.append(len(images))
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return list(images)


def scorer(folder: Path, *, most: int) -> NetScorer:
    made = models.open_source(str(detector_folder(folder))).load(False)
    assert isinstance(made, NetScorer)
    made._predictor = SmallMemory(most)  # type: ignore[assignment]
    return made


def test_a_batch_is_halved_until_it_fits_and_stays_small(tmp_path: Path, caplog) -> None:
    made = scorer(tmp_path, most=3)
    slices = [np.full((2, 2), i, np.uint8) for i in range(10)]
    with caplog.at_level(logging.WARNING, logger="cctmn"):
        for _ in range(2):
            assert [int(one[0, 0]) for one in made.predict(slices, masks=False)] == list(range(10))
    assert made._predictor.batches == [10, 5, *[2] * 5, *[2] * 5]
    assert [record.message for record in caplog.records] == [
        "the memory of a GPU is too small for 10 slices at once; smaller batches are used; "
        "set a smaller batch_size"
    ]


def test_a_gpu_too_small_for_one_slice_is_one_line(tmp_path: Path) -> None:
    made = scorer(tmp_path, most=0)
    with pytest.raises(ModelError, match=r"too small for one slice; .*--device cpu"):
        made.predict([np.zeros((2, 2), np.uint8)] * 4, masks=False)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("CUDA error: an illegal memory access was encountered\nCompile with ...", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_scorer_whose_gpu_failed_ends_so_that_another_takes_its_place(
    tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch, text: str, ends: bool
) -> None:
    class Failing:
        def predict(self, images, *, masks):
            raise RuntimeError(text)

    codes: list[int] = []
    monkeypatch.setattr(models.os, "_exit", codes.append)
    made = scorer(tmp_path, most=1)
    made._predictor = Failing()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=text.partition("\n")[0]):
        made.predict([np.zeros((2, 2), np.uint8)], masks=False)
    assert codes == ([1] if ends else [])
    assert [record.message for record in caplog.records] == (
        [f"{text.partition(chr(10))[0]}; this scorer ends and another takes its place"]
        if ends
        else []
    )
