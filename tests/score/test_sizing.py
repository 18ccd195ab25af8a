"""The numbers of processes and the sizes of blocks and files that a scoring job is planned with."""

from __future__ import annotations

import dataclasses

import pytest

from cctmn import config
from cctmn.config import ScoreConfig
from cctmn.runtime import Resources
from cctmn.score import sizing
from cctmn.score.pipeline import Plan

MILLION = 1_000_000


def plan(
    text: str = "",
    *,
    cpus: float = 64,
    gpus: float = 0,
    pending: int | None = MILLION,
    **more: object,
) -> Plan:
    resources = Resources(cpus, gpus, **more)  # type: ignore[arg-type]
    settings = config.load(ScoreConfig, sets=text.split())
    return sizing.make_plan(resources, settings, pending=pending)


def test_each_setting_changes_something() -> None:
    """Of the plan, but for max_error_rate (exit code) and those with tests elsewhere.

    tests/test_runtime.py waits for a GPU, tests/score/test_models.py changes lesion_nms_iou and
    tests/score/test_numerics.py the precision.
    """
    default = plan(cpus=6, pending=1000)
    changed = {"actors=1", "batch_size=7", "block_rows=9", "commit_rows=500", "fetch_threads=3"}
    changed |= {"ranked_boxes=true", "masks=true", "gpus=0.5"}
    assert all(plan(text, cpus=6, pending=1000) != default for text in changed)
    known = {f.name for f in dataclasses.fields(ScoreConfig)}
    assert known == {text.split("=")[0] for text in changed} | {
        "max_error_rate",
        "gpu_wait_min",
        "lesion_nms_iou",
        "precision",
    }


def test_plans_on_cpus_follow_the_cores_and_the_work() -> None:
    assert (plan(cpus=4).actors, plan(cpus=4).block_rows) == (2, 128)
    assert (plan(cpus=64).first_actors, plan(cpus=64).fetchers) == (62, 16)
    assert (plan(cpus=4, pending=25).block_rows, plan(cpus=4, pending=3).actors) == (4, 1)


def test_scorers_on_cpus_commit_every_block() -> None:
    assert plan().commit_rows == plan().block_rows == 128


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        ("gpus=1 actors=8", 0, (1, 8, 1.0, 16)),  # from zero
        ("actors=8", 2, (2, 8, 1.0, 16)),
        ("gpus=0.25 actors=8", 2, (8, 8, 0.25, 16)),
        ("", 2, (2, 100, 1.0, 16)),  # as many as the slices are worth
        ("gpus=0", 2, (62, 62, 0.0, 4)),
        ("gpus=1", 0, (1, 100, 1.0, 16)),
    ],
)
def test_plans_for_a_cluster_that_grows(
    text: str, gpus: float, expected: tuple[int, int, float, int]
) -> None:
    made = plan(text, gpus=gpus)
    assert (made.first_actors, made.actors, made.gpus_per_actor, made.batch_size) == expected


@pytest.mark.parametrize(
    ("pending", "actors"), [(5, 1), (3_000, 3), (50_000, 8), (1_200_000, 120), (None, 100)]
)
def test_a_gpu_is_asked_for_when_its_start_is_worth_it(pending: int | None, actors: int) -> None:
    """Of 8 GPUs that are there; more have to be started."""
    assert plan(gpus=8, pending=pending).actors == actors


def test_a_scorer_on_a_gpu_has_a_core_of_its_own() -> None:
    assert plan(gpus=8).scorer_cpus == 1
    assert plan("gpus=0.25", gpus=8).scorer_cpus == 0.25


def test_scorers_on_gpus_leave_cpus_to_those_that_feed_them() -> None:
    assert plan(cpus=9, gpus=8).scorer_cpus == 0


def test_files_of_a_job_on_gpus_hold_thousands_of_slices() -> None:
    assert [plan(gpus=n).commit_rows for n in (1, 2, 8)] == [2_048, 4_096, 8_192]
    assert plan(gpus=8).block_rows == 128


def test_a_given_size_of_blocks_is_also_that_of_files() -> None:
    assert plan("block_rows=4", gpus=8).commit_rows == 4
    assert plan("block_rows=4 commit_rows=32", gpus=8).commit_rows == 32


def test_decoding_stays_off_gpu_nodes_if_others_can_feed_all_gpus() -> None:
    made = plan(cpus=128, gpus=8, cpus_elsewhere=64, gpu_types=("H100",))
    assert made.avoided_gpu_types == ("H100",)


def test_decoding_uses_gpu_nodes_if_others_are_too_few() -> None:
    made = plan(cpus=128, gpus=8, cpus_elsewhere=4, gpu_types=("H100",))
    assert made.avoided_gpu_types == ()


def test_decoding_runs_anywhere_on_a_cluster_without_labels() -> None:
    assert plan(cpus=128, gpus=8, cpus_elsewhere=64).avoided_gpu_types == ()
