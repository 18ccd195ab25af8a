"""The faster parts of a training step give the step by torchvision's layers, within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from cctmn.config import ClassifierConfig
from cctmn.data.lesions import open_lesions
from cctmn.data.slices import open_slices
from cctmn.model import frozen_conv
from cctmn.model.frozen_conv import FrozenConv
from cctmn.model.roi_align import RoiAlign
from cctmn.train.tasks import ClassifierTask, DetectorTask
from tests.train.small import classifier, contract, fresh, small_arch, write_lesions, write_slices

CPU = torch.device("cpu")
Step = tuple[dict[str, float], dict[str, torch.Tensor]]  # losses and gradients


@pytest.fixture
def detector_task(tmp_path: Path) -> DetectorTask:
    samples = open_lesions(str(write_lesions(tmp_path, count=1, seed=1))).samples
    net = fresh(small_arch(), seed=1)
    return DetectorTask(net, samples, (), contract(), "full")


def step(task: DetectorTask | ClassifierTask) -> Step:
    task.net.zero_grad()
    task.train()
    torch.manual_seed(0)
    losses = task.losses(task.module, [task.read(0)], device=CPU)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {
        name: weight.grad.clone()
        for name, weight in task.net.named_parameters()
        if weight.grad is not None
    }
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_same(ours: Step, theirs: Step) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert ours[1].keys() == theirs[1].keys()
    for name, expected in theirs[1].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            ours[1][name], expected, rtol=0, atol=2e-4 * scale + 1e-8, msg=lambda m, n=name: n + m
        )


def test_a_detector_step_is_that_of_torchvisions_pooling(
    detector_task: DetectorTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = step(detector_task)
    monkeypatch.setattr(RoiAlign, "forward", MultiScaleRoIAlign.forward)
    assert_same(ours, step(detector_task))


@pytest.mark.parametrize("variant", ["s+bn", "all"])
def test_a_classifier_step_is_that_of_ordinary_convolutions(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ClassifierConfig(variant=variant)
    folder = write_slices(tmp_path, count=1, seed=1)
    split = str(folder / "split.txt")
    samples = open_slices(str(folder), split=split, classes=config.classes).samples
    net = classifier()
    with torch.no_grad():  # so that no two boxes are nearly as likely as each other
        net.detector.roi_heads.box_predictor.cls_score.weight *= 30
        net.detector.rpn.head.cls_logits.weight *= 30
    ours = step(ClassifierTask(net, samples, (), contract(), config))
    assert any(isinstance(layer, FrozenConv) for layer in net.modules())
    monkeypatch.setattr(FrozenConv, "forward", nn.Conv2d.forward)
    monkeypatch.setattr(RoiAlign, "forward", MultiScaleRoIAlign.forward)
    monkeypatch.setattr(frozen_conv, "use_for_frozen", lambda _: None)
    assert_same(ours, step(ClassifierTask(net, samples, (), contract(), config)))


def test_fused_steps_of_adam_are_its_ordinary_ones(detector_task: DetectorTask) -> None:
    """Adam's fused form on the CPU reads weights and gradients in the order of their memory."""
    after = []
    for fused in (False, True):
        net = detector_task.net = detector_task.module = fresh(small_arch(), seed=1)
        net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)
        step(detector_task)
        optimizer.step()
        after.append({name: value.clone() for name, value in net.named_parameters()})
    for name, expected in after[0].items():
        torch.testing.assert_close(after[1][name], expected, rtol=1e-5, atol=1e-6)


def test_the_rpns_losses_are_computed_in_float32_under_autocast(
    detector_task: DetectorTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpn, seen = detector_task.net.rpn, []
    compute_loss = rpn.compute_loss

    def looked_at(objectness: torch.Tensor, deltas: torch.Tensor, *rest: object) -> object:
        seen.extend([objectness.dtype, deltas.dtype])
        return compute_loss(objectness, deltas, *rest)

    monkeypatch.setattr(rpn, "compute_loss", looked_at)
    detector_task.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector_task.losses(detector_task.module, [detector_task.read(0)], device=CPU)
    assert seen == [torch.float32] * 2
    assert losses["loss_objectness"].dtype == losses["loss_rpn_box_reg"].dtype == torch.float32
