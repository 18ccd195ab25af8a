"""The loop: what is learned hangs neither on a break nor on the number of workers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from cctmn.classes import COVIDX_CLASSES
from cctmn.config import ClassifierConfig, Hardware, Optim
from cctmn.data.lesions import open_lesions
from cctmn.data.slices import open_slices
from cctmn.errors import ModelError
from cctmn.evaluate.model import EvaluatedModel
from cctmn.model import checkpoint
from cctmn.train import loop
from cctmn.train.loop import BEST, LAST, STATE, STATE_DIGEST, History, World
from cctmn.train.steps import Steps
from cctmn.train.tasks import CachedTask, ClassifierTask, DetectorTask, Task, Validated
from tests.train.small import (
    Kept,
    classifier,
    contract,
    quiet_detector,
    small_card,
    write_lesions,
    write_slices,
)

EVERY_EPOCH, LAST_EPOCH = Hardware(checkpoint_s=0), Hardware(checkpoint_s=3600)
OPTIM = Optim(epochs=3, batch_size=2, lr=1e-3, seed=4)


def stage1(folder: Path, *, count: int = 3) -> DetectorTask:
    """Slices of which the second has no lesion."""
    if not folder.exists():
        write_lesions(folder, count=3, seed=1, empty=(1,))
    samples = open_lesions(str(folder)).samples[:count]
    return DetectorTask(quiet_detector(), samples, samples[:1], contract(), "full")


def stage2(folder: Path, *, variant: str) -> ClassifierTask:
    if not folder.exists():
        write_slices(folder, count=3, seed=1)
    samples = open_slices(str(folder), classes=COVIDX_CLASSES).samples
    config = ClassifierConfig(variant=variant)
    return ClassifierTask(classifier(), samples, samples[:1], contract(), config)


def module_s(*, accuracies: tuple[float, ...] = (), losses: tuple[float, ...] = ()) -> CachedTask:
    """Stage 2 on made-up features, done in no time.

    Its accuracy and its validation loss may be given for each epoch.
    """
    features = torch.randn(5, 80, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 0, 1])
    task = CachedTask(classifier(), features, labels, features[:2], labels[:2], "bce")
    if accuracies:
        given = iter(accuracies)
        task.compute_metrics = lambda output: {"accuracy": next(given)}
    if losses:
        each = iter(loss for loss in losses for _ in range(task.valid_count))
        task.validate = lambda indices: [Validated((0, 0), next(each)) for _ in indices]
    return task


def run(
    task: Task, kept: Kept, *, optim: Optim = OPTIM, hardware: Hardware = LAST_EPOCH, **world: int
) -> History:
    return loop.run(
        task,
        card=small_card(task.net.arch),
        optim=optim,
        hardware=hardware,
        world=World(**world),
        hooks=kept,
    )


def validated_every(task: Task, kept: Kept, *, every: int, epochs: int) -> History:
    return loop.run(
        task,
        card=small_card(task.net.arch),
        optim=replace(OPTIM, epochs=epochs),
        hardware=LAST_EPOCH,
        world=World(),
        hooks=kept,
        validate_every=every,
    )


def weights(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.net.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def figures(history: History) -> list[dict[str, float]]:
    """Rows without what the clock says."""
    clock = {"steps_per_s", "train_s", "valid_s"}
    return [{k: v for k, v in row.items() if k not in clock} for row in history.rows]


# --- epochs that are not validated


def test_every_nth_epoch_and_the_last_are_validated(tmp_path):
    history = validated_every(module_s(), Kept(tmp_path), every=2, epochs=5)
    assert [row["valid_slices"] for row in history.rows] == [0, 2, 0, 2, 2]
    assert ["val_accuracy" in row for row in history.rows] == [False, True, False, True, True]


def test_an_epoch_that_was_not_validated_is_never_the_best(tmp_path):
    task, kept = module_s(accuracies=(0.9, 0.5)), Kept(tmp_path)
    validated_every(task, kept, every=3, epochs=4)
    assert checkpoint.load(kept.last() / loop.BEST).card.provenance["epoch"] == 3


def test_validating_less_often_learns_the_same(tmp_path):
    learned = []
    for every in (1, 3):
        task = module_s()
        validated_every(task, Kept(tmp_path / str(every)), every=every, epochs=4)
        learned.append(weights(task))
    assert same(*learned)


# --- one worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def test_an_interrupted_run_learns_the_same(folder, tmp_path):
    """Bit for bit, with a learning rate that moves all the time; the break is a crash."""
    plan = {
        "optim": replace(OPTIM, epochs=2, batch_size=1, schedule="cosine", warmup=2),
        "hardware": EVERY_EPOCH,
    }
    whole = stage1(folder / "lesions", count=2)
    history = run(whole, Kept(tmp_path / "whole"), **plan)
    assert [len(values) for values in history.losses.values()] == [4] * 6
    assert [(row["epoch"], row["steps"]) for row in history.rows] == [(1, 2), (2, 2)]
    assert history.rows[1]["loss"] == pytest.approx(sum(history.losses["loss"][2:4]) / 2)
    assert history.losses["loss"][3] == pytest.approx(
        sum(values[3] for name, values in history.losses.items() if name != "loss")
    )

    kept = Kept(tmp_path / "broken")
    report = kept.report

    def crash(*given: Any) -> None:
        report(*given)
        raise RuntimeError

    kept.report = crash
    with pytest.raises(RuntimeError):
        run(stage1(folder / "lesions", count=2), kept, **plan)
    assert kept.epochs == [1]
    kept.report = report
    torch.manual_seed(99)  # another process, another state of the generator
    later = stage1(folder / "lesions", count=2)
    with torch.no_grad():
        for weight in later.net.parameters():
            weight.fill_(0.5)
    continued = run(later, kept, **plan)
    assert kept.epochs == [1, 2]
    assert continued.losses == history.losses
    assert figures(continued) == figures(history)
    assert same(weights(later), weights(whole))

    run(stage1(folder / "lesions", count=2), kept, **plan)  # all is done
    assert kept.epochs == [1, 2]


def test_more_epochs_can_be_asked_for_later(tmp_path):
    whole, kept = module_s(), Kept(tmp_path / "kept")
    history = run(whole, Kept(tmp_path / "whole"))
    run(module_s(), kept, optim=replace(OPTIM, epochs=1))
    later = module_s()
    assert run(later, kept).losses == history.losses
    assert same(weights(later), weights(whole))


def test_checkpoints_are_models_and_wait_for_their_time(tmp_path):
    task, kept = module_s(), Kept(tmp_path)
    run(task, kept)
    assert kept.epochs == [3]  # the last is always written
    assert sorted(path.name for path in kept.last().iterdir()) == sorted(
        [BEST, LAST, STATE, STATE_DIGEST]
    )
    last = checkpoint.load(kept.last() / LAST)
    assert same(last.net.state_dict(), weights(task))
    assert last.card.provenance["epoch"] == 3


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ((0.2, 0.9, 0.5), (1, 2, 1), 2),
        ((0.2, 0.5, 0.5), (1, 1, 0.9), 3),
        ((0.2, 0.5, 0.5), (1, 0.8, 0.9), 2),
        ((0.5, 0.5, 0.5), (0.9, 0.9, 0.9), 1),
        ((0.5, 0.5, 0.5), (math.nan, 0.9, 0.9), 2),
        ((math.nan, 0.1, math.nan), (1, 1, 1), 2),
    ],
)
def test_the_best_epoch_is_that_of_the_best_metric_then_of_the_lower_loss(
    tmp_path, accuracies, losses, best
):
    kept, until = Kept(tmp_path / "kept"), module_s()
    history = run(module_s(accuracies=accuracies, losses=losses), kept)
    assert [row["val_loss"] for row in history.rows] == pytest.approx(losses, nan_ok=True)
    run(until, Kept(tmp_path / "until"), optim=replace(OPTIM, epochs=best))
    loaded = checkpoint.load(kept.last() / BEST)
    assert same(loaded.net.state_dict(), weights(until))
    metrics = {"loss": losses[best - 1], "accuracy": accuracies[best - 1]}
    recorded = {"chosen_by": "accuracy", "metrics": metrics}
    assert loaded.card.provenance == {"epoch": best, "validation": recorded}
    assert loaded.card.validation["value"] == accuracies[best - 1]
    shown = EvaluatedModel.from_description(loaded.card.described).as_json()["validation"]
    assert shown == {"chosen_by": "accuracy", "value": accuracies[best - 1]}


def test_epochs_of_an_earlier_version_have_no_loss_and_the_last_of_equals_is_best(tmp_path):
    kept = Kept(tmp_path / "kept")
    task = module_s(accuracies=(0.5, 0.5, 0.4))
    here = loop._Run(task, Steps(5, OPTIM), LAST_EPOCH, World(), kept)
    here.history.rows = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.5}]
    assert here.best_row()["epoch"] == 2
    here.history.rows.append({"epoch": 3, "val_accuracy": 0.5, "val_loss": 7.0})
    assert here.best_row()["epoch"] == 3
    here.history.rows.append({"epoch": 4, "val_accuracy": 0.5, "val_loss": 7.0})
    assert here.best_row()["epoch"] == 3


def test_the_epoch_that_is_resumed_from_is_reported(tmp_path):
    kept = Kept(tmp_path)
    run(module_s(), kept, optim=replace(OPTIM, epochs=2))
    assert kept.shown == []
    run(module_s(), kept)
    assert kept.shown == [{"resumed": 2, "epochs": 3}]
    run(module_s(), kept)  # all is done
    assert len(kept.shown) == 1


def test_an_undefined_metric_is_null_on_the_card(tmp_path):
    kept = Kept(tmp_path)
    run(module_s(accuracies=(math.nan,)), kept, optim=replace(OPTIM, epochs=1))
    for name in (BEST, LAST):
        card = checkpoint.load(kept.last() / name).card
        assert card.provenance["validation"]["metrics"]["accuracy"] is None
        assert card.validation["value"] is None


def test_the_best_epoch_before_an_interruption_is_kept(tmp_path):
    kept = Kept(tmp_path)
    run(module_s(accuracies=(0.9, 0.1)), kept, optim=replace(OPTIM, epochs=2))
    first = checkpoint.load(kept.last() / BEST)
    run(module_s(accuracies=(0.2,)), kept)
    loaded = checkpoint.load(kept.last() / BEST)
    assert loaded.card.provenance["epoch"] == first.card.provenance["epoch"] == 1
    assert same(loaded.net.state_dict(), first.net.state_dict())


@pytest.mark.parametrize("file", [STATE, f"{LAST}/weights.safetensors", f"{BEST}/card.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, file):
    plan = {"optim": replace(OPTIM, epochs=3), "hardware": EVERY_EPOCH}
    whole = module_s()
    run(whole, Kept(tmp_path / "whole"), **plan)
    kept = Kept(tmp_path / "kept")
    run(module_s(), kept, optim=replace(OPTIM, epochs=2), hardware=EVERY_EPOCH)
    assert kept.epochs == [1, 2]
    path = kept.last() / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = module_s()
    history = run(again, kept, **plan)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert same(weights(again), weights(whole))
    for folder in kept.restore():
        (folder / STATE).write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"no checkpoint can be read; use a new OUT \("):
        run(module_s(), kept, **plan)


def test_loss_that_is_no_longer_finite_is_one_line(folder, tmp_path):
    kept = Kept(tmp_path)
    for task in (module_s(), stage1(folder / "lesions"), stage2(folder / "slices", variant="all")):
        with pytest.raises(
            ModelError, match=r"no longer finite in epoch [12]; lower optim"
        ) as recorded:
            run(task, kept, optim=replace(OPTIM, lr=1e30))
        assert "\n" not in str(recorded.value)
        assert kept.epochs == []


def test_weights_move_by_adam(tmp_path):
    """Its first step is the sign of the gradient, to which the decay of the weights is added."""
    task = module_s()
    batch = [task.read(i) for i in range(5)]
    task.losses(task.module, batch, device=torch.device("cpu"))["loss_class"].backward()
    before = {name: value.detach().clone() for name, value in task.module.named_parameters()}
    gradients = {name: value.grad.clone() for name, value in task.module.named_parameters()}
    task.module.zero_grad()
    run(task, Kept(tmp_path), optim=Optim(epochs=1, batch_size=5, lr=0.01, weight_decay=0.1))
    for name, value in task.module.state_dict().items():
        gradient = gradients[name] + 0.1 * before[name]
        expected = before[name] - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


def test_every_step_has_its_learning_rate(tmp_path, monkeypatch):
    optim, kept = replace(OPTIM, schedule="cosine", warmup=4), Kept(tmp_path)
    rates: list[float] = []
    step = torch.optim.Adam.step

    def spied(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", spied)
    run(module_s(), kept, optim=optim)
    steps = Steps(5, optim)
    assert rates == [steps.lr(step) for step in range(9)]
    assert len(set(rates)) == 9


SETTINGS = {
    "lr": 2e-3,
    "weight_decay": 0.5,
    "clip_norm": 1e-4,
    "warmup": 3,
    "schedule": "cosine",
    "seed": 5,
    "batch_size": 1,
    "steps": 4,
}


def test_every_setting_changes_what_is_learned(tmp_path):
    plain = module_s()
    run(plain, Kept(tmp_path / "plain"))
    for name, value in SETTINGS.items():
        other = module_s()
        run(other, Kept(tmp_path / name), optim=replace(OPTIM, **{name: value}))
        assert not same(weights(plain), weights(other)), name


def test_loaders_and_micro_batches_change_nothing(tmp_path):
    """Of module S; in stage 1 a micro-batch shares batch norm."""
    loaded = []
    for number, hardware in enumerate((LAST_EPOCH, Hardware(micro_batch=2), Hardware(loaders=1))):
        task = module_s()
        history = run(task, Kept(tmp_path / str(number)), hardware=hardware)
        loaded.append(torch.tensor(history.losses["loss"]))
    for losses in loaded[1:]:
        torch.testing.assert_close(losses, loaded[0], rtol=1e-5, atol=1e-6)


def test_precision_and_micro_batches_in_stage_1(folder, tmp_path):
    plain, coarse, shared = (
        first_loss(stage1(folder / "lesions", count=2), tmp_path / str(number), hardware)
        for number, hardware in enumerate(
            (LAST_EPOCH, Hardware(precision="bfloat16"), Hardware(micro_batch=2))
        )
    )
    assert 0 < abs(coarse - plain) < 0.1 * plain
    assert math.isfinite(shared)
    assert abs(shared - plain) > 0.01 * plain  # one loss and one batch norm of both slices


def test_precision_in_stage_2(folder, tmp_path):
    plain, coarse = (
        first_loss(
            stage2(folder / "slices", variant="all"),
            tmp_path / precision,
            Hardware(precision=precision),
        )
        for precision in ("float32", "bfloat16")
    )
    assert 0 < abs(coarse - plain) < 0.1 * plain


def first_loss(task: Task, folder: Path, hardware: Hardware) -> float:
    history = run(task, Kept(folder), optim=replace(OPTIM, steps=1), hardware=hardware)
    return history.losses["loss"][0]


def test_progress_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "PROGRESS_S", 0)
    kept = Kept(tmp_path)
    history = run(module_s(), kept)
    assert [one["step"] for one in kept.shown] == list(range(1, 10))
    assert [one["epoch"] for one in kept.shown] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [one["loss"] for one in kept.shown] == pytest.approx(history.losses["loss"])
    assert {one["steps"] for one in kept.shown} == {9}
    assert all(one["left_s"] >= 0 for one in kept.shown)


# --- two workers

EPOCH, STEP = replace(OPTIM, epochs=1), replace(OPTIM, steps=1)
CASES = {
    "still": (lambda data: stage1(data / "lesions"), replace(EPOCH, lr=0.0)),
    "full": (lambda data: stage1(data / "lesions"), EPOCH),
    "s+bn": (lambda data: stage2(data / "slices", variant="s+bn"), EPOCH),
    "all": (lambda data: stage2(data / "slices", variant="all"), STEP),
    "s": (lambda data: module_s(), replace(OPTIM, batch_size=4)),
}


def learned(name: str, data: Path, kept: Path, **world: int) -> tuple[Any, Any, dict[str, Tensor]]:
    """Losses, rows and weights of a case."""
    make, optim = CASES[name]
    task = make(data)
    history = run(task, Kept(kept / name), optim=optim, **world)
    return history.losses, figures(history), weights(task)


def work(rank: int, data: Path, place: Path) -> None:
    """One of two workers: every case, then one that fails on both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    world = {"rank": rank, "size": 2}
    loaded: dict[str, Any] = {n: learned(n, data, place / str(rank), **world) for n in CASES}
    try:
        run(module_s(), Kept(place / "wild"), optim=replace(OPTIM, lr=1e30), **world)
    except ModelError as error:
        loaded["wild"] = str(error)
    torch.save(loaded, place / f"found{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers found; one start of processes for all tests."""
    place = tmp_path_factory.mktemp("two")
    stage1(folder / "lesions")
    stage2(folder / "slices", variant="s")
    torch.multiprocessing.spawn(work, args=(folder, place), nprocs=2)
    return [torch.load(place / f"found{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", [name for name in CASES if name != "still"])
def test_two_workers_learn_what_one_learns(folder, tmp_path, two, name):
    """Three slices in steps of two: one has no lesion, and in one step a worker has no slice."""
    losses, rows, _ = learned(name, folder, tmp_path)
    (first, first_rows, first_net), (second, second_rows, second_net) = (f[name] for f in two)
    assert first == second
    assert str(first_rows) == str(second_rows)  # nan is not equal to itself
    assert same(first_net, second_net)  # with the statistics of batch norm
    for loss, values in losses.items():
        assert first[loss] == pytest.approx(values, rel=1e-4, abs=1e-5), loss
    assert [row["steps"] for row in first_rows] == [row["steps"] for row in rows]
    if name == "s":
        for row, other in zip(rows, first_rows, strict=True):
            assert other == pytest.approx(row, rel=1e-4, nan_ok=True)


def test_statistics_of_batch_norm_are_the_workers_mean(folder, two):
    loaded = []
    for rank in (0, 1):
        task = stage1(folder / "lesions")
        task.train()
        for micro in Steps(3, CASES["still"][1], size=2).epoch(0, rank=rank):
            batch = [task.read(i) for i in micro.indices]
            task.losses(task.module, batch, device=torch.device("cpu"))
        loaded.append({name: b for name, b in task.net.named_buffers() if b.is_floating_point()})
    net = two[0]["still"][2]
    for name, value in loaded[0].items():
        torch.testing.assert_close(net[name], (value + loaded[1][name]) / 2, atol=1e-6, rtol=1e-5)


def test_both_workers_report_a_loss_that_is_not_finite(two):
    assert two[0]["wild"] == two[1]["wild"]
    assert "no longer finite" in two[0]["wild"]
