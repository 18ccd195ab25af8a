"""A scorer on a GPU goes on with smaller batches, or ends after an error of CUDA."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cctmn.config import ScoreConfig
from cctmn.errors import ModelError, PreflightError
from cctmn.score import models, run
from cctmn.score.models import NetScorer
from cctmn.score.scorer import GpuError, ImageArray
from tests.conftest import RecordingReporter
from tests.makers import StandIn, png, stand_in
from tests.train.small import detector_folder

SLICES = 40


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
    ("text", "error"),
    [
        ("CUDA error: an illegal memory access was encountered\nCompile with ...", GpuError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_an_error_of_cuda_is_told_from_others(
    tmp_path: Path, caplog, text: str, error: type[Exception]
) -> None:
    class Failing:
        def predict(self, images, *, masks):
            raise RuntimeError(text)

    made = scorer(tmp_path, most=1)
    made._predictor = Failing()  # type: ignore[assignment]
    with pytest.raises(error, match=f"^{text.partition(chr(10))[0]}$"):
        made.predict([np.zeros((2, 2), np.uint8)], masks=False)
    assert [record.message for record in caplog.records] == (
        [f"{text.partition(chr(10))[0]}; this scorer ends and another takes its place"]
        if error is GpuError
        else []
    )


class FailingGpu(StandIn):
    """A stand-in for a network on GPUs of which those with these numbers are broken."""

    def __init__(self, gpu: bool, *, broken: Collection[str]) -> None:
        super().__init__(0.2)
        self._broken = broken

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        import ray

        if ray.get_runtime_context().get_accelerator_ids()["GPU"][0] in self._broken:
            raise GpuError("CUDA error")
        return super().predict(images, masks=masks)


@pytest.fixture
def job(tmp_path: Path, no_ray: None) -> Iterator[Callable[..., run.ScoreJob]]:
    """Return what makes a job on a Ray that believes to have GPUs, of which some are broken."""
    import ray

    slices = tmp_path / "slices"
    slices.mkdir()
    for n in range(SLICES):
        (slices / f"{n}.png").write_bytes(png(n))

    def make(*, gpus: int, broken: Collection[str]) -> run.ScoreJob:
        ray.init("local", num_cpus=6, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
        load = functools.partial(FailingGpu, broken=broken)
        source = dataclasses.replace(stand_in(), load=load)
        settings = ScoreConfig(gpus=1, batch_size=2, block_rows=2, commit_rows=2)
        return run.ScoreJob([str(slices)], str(tmp_path / "out"), source, settings)

    yield make
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
def test_a_gpu_that_fails_again_and_again_is_left_out(
    job: Callable[..., run.ScoreJob], reporter: RecordingReporter
) -> None:
    made = job(gpus=2, broken={"0"})
    assert run.score(made, report=reporter).counts.ok == SLICES
    [line] = [line for line in reporter.lines if "again and again" in line]
    assert re.match(
        r"GPU 0 of \S+ failed again and again; check with nvidia-smi; continuing .* to score",
        line,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_without_a_working_gpu_ends_with_one_line(job: Callable[..., run.ScoreJob]) -> None:
    with pytest.raises(PreflightError, match=r"GPU 0 of \S+ failed .*; no other GPU is left"):
        run.score(job(gpus=1, broken={"0"}))
