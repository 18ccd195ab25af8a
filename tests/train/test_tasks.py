"""The two stages: what is learned, which weights move, and how good the net is said to be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cctmn.classes import COVIDX_CLASSES
from cctmn.config import ClassifierConfig, Hardware, Optim
from cctmn.data.lesions import open_lesions
from cctmn.data.slices import SliceSample, open_slices
from cctmn.metrics import detection
from cctmn.model import ranking
from cctmn.model.classifier import Classifier
from cctmn.model.inference import Predictor
from cctmn.train import features, loop, tasks
from cctmn.train.loop import World
from cctmn.train.tasks import CachedTask, ClassifierTask, DetectorTask, Task
from tests.train.small import (
    Kept,
    classifier,
    contract,
    fresh,
    picture,
    quiet_detector,
    small_arch,
    small_card,
    write_lesions,
    write_slices,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> tuple[SliceSample, ...]:
    folder = write_slices(tmp_path_factory.mktemp("slices"), count=6, seed=1)
    return open_slices(str(folder), classes=COVIDX_CLASSES).samples


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = write_lesions(tmp_path_factory.mktemp("lesions"), count=3, seed=1, empty=(1,))
    return open_lesions(str(folder)).samples


def stage2(net: Classifier, slices: Any, **settings: Any) -> ClassifierTask:
    return ClassifierTask(net, slices, slices, contract(), ClassifierConfig(**settings))


def ready(*crops: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Slices of these sizes as one padded batch."""
    rng = np.random.default_rng(1)
    whole = [picture(rng, lesions=(2, 3))[0] for _ in crops]
    pictures = [
        torch.from_numpy(grey[-height:, :width].copy())
        for grey, (height, width) in zip(whole, crops, strict=True)
    ]
    return tasks._stack(pictures, device=CPU)


def plainly(net: Classifier, x_B3HW: Tensor, *, sizes: list[tuple[int, int]]) -> Tensor:
    """What module S reads, through the box head's output on all proposals."""
    features = net.detector.backbone(x_B3HW)
    outputs = net.detector.box_outputs(x_B3HW, features, sizes=sizes)
    candidates = [output.candidates() for output in outputs]
    return torch.stack(
        [
            ranking.ranked_features(
                one.scores_R[keep], deltas_N4=one.deltas_R4[keep], count=net.arch.ranked
            )
            for one in candidates
            for keep in [ranking.choose(one, count=net.arch.ranked)]
        ]
    )


# --- stage 2, the way through the detector


@pytest.mark.parametrize(
    ("ranked", "crops"),
    [(16, [(32, 32), (30, 20)]), (200, [(8, 8), (8, 12)])],  # so few survive that rows repeat
)
def test_features_of_chosen_boxes_equal_those_of_all_proposals(ranked, crops):
    net = classifier(ranked=ranked)
    tasks.choose_weights(net, variant="all")
    net.train()
    x_B3HW, sizes = ready(*crops)
    weights = torch.randn(2, ranked, 5, generator=torch.Generator().manual_seed(0))
    result = []
    for way in (net.ranked_features, lambda x, sizes: plainly(net, x, sizes=sizes)):
        net.zero_grad()
        features_BN5 = way(x_B3HW, sizes=sizes)
        logits_BC = torch.stack([net.module_s(one.flatten()) for one in features_BN5])
        (logits_BC.sum() + (features_BN5 * weights).sum()).backward()
        gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}
        result.append((features_BN5.detach(), logits_BC.detach(), gradients))
    (here, logits, gradients), (there, logits_there, gradients_there) = result
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, logits_there, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x_B3HW, sizes=sizes), logits, atol=1e-6, rtol=0)
    for name, gradient in gradients.items():
        scale = float(gradients_there[name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(gradient, gradients_there[name], atol=1e-4 * scale, rtol=0)


def test_a_slice_does_not_depend_on_its_batch():
    net = classifier().train()
    x_B3HW, sizes = ready((64, 64), (60, 40))
    alone = [net(x_3HW[None], sizes=[size]) for x_3HW, size in zip(x_B3HW, sizes, strict=True)]
    torch.testing.assert_close(net(x_B3HW, sizes=sizes), torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_training_sees_what_scoring_sees(slices):
    net = classifier()
    task = stage2(net, slices)
    pixels, label = task.read(0)
    there = Predictor(net).predict([pixels.numpy()])[0]
    task.train()
    x_B3HW, sizes = tasks._stack([pixels], device=CPU)
    with torch.no_grad():
        here = net(x_B3HW, sizes=sizes)[0].numpy()
    np.testing.assert_allclose(here, there.logits_C, atol=1e-5)
    net.eval()
    (validated,) = task.validate([0])
    assert validated.output == (label, there.logits_C.argmax())
    with torch.no_grad():
        losses = task.losses(net, [(pixels, label)], device=CPU)
    assert validated.loss == pytest.approx(float(losses["loss_class"]), abs=1e-5)


def test_without_any_box_every_weight_still_gets_a_gradient():
    """Or the other workers would wait for the rest for ever."""
    net = classifier()
    with torch.no_grad():
        net.detector.roi_heads.box_predictor.bbox_pred.bias[2::4] = -1e4  # no box has a width
    tasks.choose_weights(net, variant="all")
    x_B3HW, sizes = ready((64, 64))
    features_BN5 = net.train().ranked_features(x_B3HW, sizes=sizes)
    assert not features_BN5.any()
    net(x_B3HW, sizes=sizes).sum().backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


# --- which weights move


def moved(task: Task, *indices: int) -> tuple[set[str], set[str]]:
    """Names of the weights and of the statistics that change in one optimiser step."""
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    weights = [p for p in task.module.parameters() if p.requires_grad]
    task.train()
    losses = task.losses(task.module, [task.read(i) for i in indices], device=CPU)
    sum(losses.values()).backward()
    torch.optim.Adam(weights, lr=1e-3).step()
    after = task.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    named = {name for name, _ in task.net.named_parameters()}
    return changed & named, changed - named


def batch_norm(net: nn.Module) -> set[str]:
    return {
        f"{name}.{part}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("variant", ["s", "s+bn", "all"])
def test_a_variant_trains_only_its_weights(slices, variant):
    net = classifier(mask_head=True)
    names = {name for name, _ in net.named_parameters()}
    module_s = {name for name in names if name.startswith("module_s.")}
    assert len(module_s) == 6
    aside = re.compile(r"detector\.(rpn|roi_heads\.mask_.*)\.")
    expected = {
        "s": module_s,
        "s+bn": module_s | batch_norm(net),
        "all": {name for name in names if not aside.match(name)},
    }
    assert len(batch_norm(net)) == 20  # of a ResNet-18 with two of its layers
    task = stage2(net, slices, variant=variant)
    weights, statistics = moved(task, 0)
    assert weights == expected[variant]
    assert statistics == set()


@pytest.mark.parametrize("variant", ["heads", "full"])
def test_variant_heads_keeps_the_backbone(lesions, variant):
    net = fresh(small_arch(), seed=1)
    task = DetectorTask(net, lesions, lesions, contract(), variant)
    weights, statistics = moved(task, 0)
    trunk = {name for name in net.state_dict() if name.startswith("backbone.")}
    named = {name for name, _ in net.named_parameters()}
    assert weights == (named - trunk if variant == "heads" else named)
    assert statistics == (set() if variant == "heads" else trunk - named)


# --- losses


def test_losses_by_hand():
    logits = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]
    labels = [2, 1]
    tensors = torch.tensor(logits), torch.tensor(labels)
    sigmoids = 1 / (1 + np.exp(-np.array(logits)))
    truth = np.eye(3)[labels]
    bce = -np.mean(truth * np.log(sigmoids) + (1 - truth) * np.log(1 - sigmoids))
    assert float(tasks.CRITERIA["bce"](*tensors)) == pytest.approx(bce, rel=1e-6)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -np.mean(np.log(shares[[0, 1], labels]))
    assert float(tasks.CRITERIA["cross-entropy"](*tensors)) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("loss", ["bce", "cross-entropy"])
def test_the_loss_is_the_one_that_was_asked_for(slices, loss):
    net = classifier()
    task = stage2(net, slices, loss=loss)
    task.train()
    batch = [task.read(0)]
    losses = task.losses(task.module, batch, device=CPU)
    assert list(losses) == ["loss_class"]
    logits_BC = torch.from_numpy(
        np.stack([Predictor(net).predict([x.numpy()])[0].logits_C for x, _ in batch])
    )
    labels_B = torch.tensor([label for _, label in batch])
    expected = tasks.CRITERIA[loss](logits_BC, labels_B)
    torch.testing.assert_close(losses["loss_class"].detach(), expected, atol=1e-5, rtol=1e-5)

    read, labels = torch.randn(6, 80), torch.tensor([one.label for one in slices])
    cached = CachedTask(net, read, labels, read, labels, loss)
    losses = cached.losses(cached.module, [cached.read(i) for i in (0, 4)], device=CPU)
    expected = tasks.CRITERIA[loss](net.module_s(read[[0, 4]]), labels[[0, 4]])
    torch.testing.assert_close(losses["loss_class"], expected)


def test_boxes_of_the_truth_end_at_px_edges(lesions):
    masks_MHW = torch.zeros(2, 40, 50, dtype=torch.uint8)
    masks_MHW[0, 5:16, 7:20] = 1
    masks_MHW[1, 30:40, 45:50] = 1  # to the picture's far corner
    target = tasks._target(masks_MHW, torch.tensor([1, 2]))
    assert target["boxes"].tolist() == [[7, 5, 20, 16], [45, 30, 50, 40]]
    empty = tasks._target(masks_MHW[:0], torch.zeros(0, dtype=torch.int64))
    assert (empty["boxes"].shape, empty["boxes"].dtype) == ((0, 4), torch.float32)


# --- module S alone


def table(net: Classifier, slices: Any, folder: Path) -> Tensor:
    return features.ranked_features(
        net,
        slices,
        contract=contract(),
        folder=f"file://{folder}",
        world=World(),
        report_done=lambda done: None,
    )


def test_cached_features_train_as_computed_ones(slices, tmp_path):
    settings = ClassifierConfig(variant="s", optim=Optim(epochs=3, batch_size=2, lr=3e-2, seed=3))
    net, same, slices = classifier(), classifier(), slices[::2]
    slow = ClassifierTask(net, slices, slices[:1], contract(), settings)
    read = table(same, slices, tmp_path / "features")
    labels = torch.tensor([one.label for one in slices])
    quick = CachedTask(same, read, labels, read[:1], labels[:1], "bce")
    card = small_card(net.arch)
    here, there = (
        loop.run(
            task,
            card=card,
            optim=settings.optim,
            hardware=Hardware(),
            world=World(),
            hooks=Kept(tmp_path / name),
        )
        for task, name in ((quick, "quick"), (slow, "slow"))
    )
    assert len(here.losses["loss"]) == 6
    assert here.losses["loss"][-1] < 0.95 * here.losses["loss"][0]
    np.testing.assert_allclose(here.losses["loss"], there.losses["loss"], rtol=1e-4)
    for name, value in net.module_s.state_dict().items():
        torch.testing.assert_close(same.module_s.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    for one, other in zip(here.rows, there.rows, strict=True):
        figures = {name: other[name] for name in other if name.startswith("val_")}
        assert {name: one[name] for name in figures} == pytest.approx(figures, nan_ok=True)


def test_ranked_boxes_are_computed_once(slices, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 2)
    net, slices = classifier(), slices[:3]
    first = table(net, slices, tmp_path)
    assert first.shape == (3, 80)
    ranked = [
        Predictor(net).predict([stage2(net, slices).read(i)[0]])[0].ranked_features_N5
        for i in (0, 2)
    ]
    np.testing.assert_array_equal(first[[0, 2]].numpy(), [one.ravel() for one in ranked])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npy", "000001.npy"]
    (tmp_path / "000001.npy").unlink()
    seen: list[int] = []
    predict = Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda *args, **options: seen.append(1) or predict(*args, **options)
    )
    torch.testing.assert_close(table(net, slices, tmp_path), first, atol=0, rtol=0)
    assert len(seen) == 1


# --- validation


def test_predictions_that_are_the_truth_are_perfect(lesions):
    task = DetectorTask(quiet_detector(), lesions, lesions, contract(), "full")
    task.net.eval()
    truths = [one.output[1] for one in task.validate(range(3))]
    assert [len(truth.labels_M) for truth in truths] == [3, 0, 3]
    perfect = task.compute_metrics([(truth, truth) for truth in truths])
    assert set(perfect) >= {task.best_metric, "image_ap50", "coco_map"}
    assert set(perfect.values()) == {1.0}
    # the classes the other way round, and nothing at all
    wrong = [replace(truth, labels_M=3 - truth.labels_M) for truth in truths]
    nothing = detection.Instances([], np.zeros(0, np.int64), np.zeros(0, np.float32))
    for predicted in (wrong, [nothing] * 3):
        figures = task.compute_metrics(list(zip(predicted, truths, strict=True)))
        assert figures["image_map"] == pytest.approx(1 / 3)  # of the slice without a lesion
        assert figures["coco_map"] == 0


def test_the_nets_own_lesions_are_measured(lesions):
    net = fresh(small_arch(), seed=1)
    task = DetectorTask(net, lesions, lesions, contract(), "full")
    result, truth = task.validate([0])[0].output
    (there,) = Predictor(net).predict([task.read(0)[0]])
    assert result.scores_M.tolist() == there.scores_M.tolist()
    assert [int(m) for m in detection.rle.area(result.masks)] == there.mask_px_M.tolist()
    read = tasks.read_lesions(
        lesions[0], lesion_classes=net.arch.lesion_classes, contract=contract()
    )
    assert truth.labels_M.tolist() == read.labels_M.tolist()


def test_the_validation_loss_of_stage_1_changes_nothing(lesions):
    net = fresh(small_arch(), seed=1)
    task = DetectorTask(net, lesions, lesions, contract(), "full")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    losses = [one.loss for one in task.validate([0, 0, 2])]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] > 0


def test_metrics_of_stage_2(slices):
    task = stage2(classifier(), slices)
    figures = task.compute_metrics([(0, 0), (0, 0), (1, 1), (1, 2), (2, 2), (2, 0)])
    assert figures[task.best_metric] == pytest.approx(4 / 6)
    assert figures["sensitivity_control"] == 1
    assert figures["ppv_covid"] == pytest.approx(1 / 2)
