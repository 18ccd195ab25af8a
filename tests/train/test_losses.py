"""The five losses of stage 1 against torchvision's own Mask R-CNN, put together here anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models, ops
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from cctmn.contract import InputContract
from cctmn.data.lesions import open_lesions
from cctmn.model.card import Arch
from cctmn.model.detector import Detector
from cctmn.phantom import layouts
from cctmn.train.tasks import DetectorTask
from tests.train.small import contract, fresh, small_arch, write_lesions

SEED = 5  # of the sampling
CPU = torch.device("cpu")
LOSSES = ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]


class Trunk(nn.Module):
    """ResNet and feature pyramid, as torchvision's detectors want them."""

    out_channels = 256

    def __init__(self, name: str, layers: dict[str, str], widths: list[int]) -> None:
        super().__init__()
        resnet = getattr(models, name)(weights=None)
        self.body = models._utils.IntermediateLayerGetter(resnet, return_layers=layers)
        self.fpn = ops.FeaturePyramidNetwork(widths, 256)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        # Ours has this layout; another's rounding moves a ResNet-50's losses by 1e-4.
        return self.fpn(self.body(x.contiguous(memory_format=torch.channels_last)))


def torchvisions(net: Detector, *, trunk: Trunk, mask_layers: tuple[int, ...]) -> MaskRCNN:
    """torchvision's Mask R-CNN with the numbers of method.md and the weights of `net`."""
    levels = len(net.arch.layers)
    names = [str(i) for i in range(levels)]
    sizes, ratios = (2, 4, 8, 16, 32), (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
    reference = MaskRCNN(
        trunk,
        min_size=1,
        max_size=10_000,
        _skip_resize=True,
        rpn_anchor_generator=AnchorGenerator((sizes,) * levels, (ratios,) * levels),
        rpn_fg_iou_thresh=0.7,
        rpn_bg_iou_thresh=0.3,
        rpn_batch_size_per_image=256,
        rpn_positive_fraction=0.75,
        rpn_nms_thresh=0.75,
        box_roi_pool=ops.MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(256 * 49, 128),
        box_predictor=FastRCNNPredictor(128, 3),
        box_fg_iou_thresh=0.75,
        box_bg_iou_thresh=0.5,
        box_batch_size_per_image=256,
        box_positive_fraction=0.75,
        mask_roi_pool=ops.MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(256, mask_layers, 1),
        mask_predictor=MaskRCNNPredictor(mask_layers[-1], mask_layers[-1], 3),
    )
    reference.load_state_dict(net.state_dict())
    return reference.train()


def lively(arch: Arch) -> Detector:
    """A net whose RPN says something else of each anchor; a new one's is next to zero."""
    net = fresh(arch, seed=2)
    with torch.no_grad():
        net.rpn.head.cls_logits.weight *= 30
        net.rpn.head.bbox_pred.weight *= 30
    return net


def around(boxes_M4: Tensor) -> Tensor:
    """Boxes near these, of which some are foreground, others ignored and the rest background."""
    rng = np.random.default_rng(4)
    sides_M4 = (boxes_M4[:, 2:] - boxes_M4[:, :2]).repeat(1, 2)
    shifts = torch.from_numpy(rng.uniform(-0.2, 0.2, (40, *boxes_M4.shape))).float()
    return (boxes_M4 + shifts * sides_M4).reshape(-1, 4)


def ours(task: DetectorTask, *, given: list[Tensor]) -> dict[str, Tensor]:
    """Our losses of the first slice; its proposals, and more near the lesions, are put in `given`.

    A new net's own proposals are never near enough to a lesion to be foreground.
    """
    filter_proposals = task.net.rpn.filter_proposals
    _, masks, _ = task.read(0)

    def more(*args: Any) -> Any:
        proposals, _ = filter_proposals(*args)
        given.append(torch.cat([proposals[0], around(ops.masks_to_boxes(masks))]))
        return given, None

    task.net.rpn.filter_proposals = more
    task.train()
    torch.manual_seed(SEED)
    return task.losses(task.module, [task.read(0)], device=CPU)


def theirs(reference: MaskRCNN, task: DetectorTask, *, given: list[Tensor]) -> dict[str, Tensor]:
    """torchvision's losses of the same slice on these proposals, which it would rank otherwise."""
    torch.manual_seed(SEED)
    reference.rpn.filter_proposals = lambda *_: (given, None)
    with Image.open(task.slices[0].image.removeprefix("file://")) as image:
        x_3HW = torch.from_numpy(np.array(image)).float().div(255).expand(3, -1, -1)
    _, masks, labels = task.read(0)
    edges = [[np.flatnonzero(mask.any(axis)) for axis in (0, 1)] for mask in masks.numpy()]
    boxes = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in edges]
    target = {"boxes": torch.tensor(boxes).float(), "labels": labels, "masks": masks}
    return reference([x_3HW], [target])


def different(here: dict[str, Tensor], there: dict[str, Tensor]) -> list[str]:
    """The losses that do not agree to 1e-5, absolute and relative."""
    assert sorted(here) == sorted(there) == LOSSES
    gap = {name: abs(here[name] - there[name]) for name in LOSSES}
    return [name for name in LOSSES if not gap[name] <= 1e-5 + 1e-5 * there[name]]


def phantom_task(net: Detector, folder: Path, *, box: tuple[int, ...]) -> DetectorTask:
    layouts.write_lesions(folder, count=1, seed=5)
    for path in folder.glob("*/*.png"):
        with Image.open(path) as image:
            image.crop(box).save(path)
    samples = open_lesions(str(folder)).samples
    stored = InputContract(size_px=min(box[2] - box[0], box[3] - box[1]))
    return DetectorTask(net, samples, samples, stored, "full")


@pytest.mark.parametrize(
    ("backbone", "truncation", "layers", "widths", "mask_layers", "box"),
    [
        ("resnet18", 1, {"layer3": "0"}, [256], (128,), (0, 0, 512, 512)),
        (
            "resnet50",
            0,
            {f"layer{i + 1}": str(i) for i in range(4)},
            [256, 512, 1024, 2048],
            (256,) * 4,
            (320, 130, 445, 375),  # padded on both sides
        ),
    ],
)
def test_losses_agree_with_torchvision(
    tmp_path, backbone, truncation, layers, widths, mask_layers, box
):
    net = lively(small_arch(backbone=backbone, truncation=truncation))
    reference = torchvisions(net, trunk=Trunk(backbone, layers, widths), mask_layers=mask_layers)
    task = phantom_task(net, tmp_path, box=box)
    assert len(task.read(0)[2]) > 1
    given: list[Tensor] = []
    with torch.no_grad():
        here, there = ours(task, given=given), theirs(reference, task, given=given)
    assert min(here.values()) > 0.1
    assert different(here, there) == []


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesions(tmp_path_factory.mktemp("lesions"), count=2, seed=1, empty=(1,))


def small_task(folder: Path) -> DetectorTask:
    samples = open_lesions(str(folder)).samples
    return DetectorTask(lively(small_arch()), samples, samples, contract(), "full")


@pytest.fixture(scope="module")
def done(lesions: Path) -> tuple[DetectorTask, list[Tensor], dict[str, Tensor]]:
    """Our losses of a small slice, and what they were computed on."""
    task, given = small_task(lesions), []
    with torch.no_grad():
        losses = ours(task, given=given)
    return task, given, losses


def batch_norm_eps(net: MaskRCNN) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def rpn_iou(net: MaskRCNN) -> None:
    net.rpn.proposal_matcher.low_threshold = 0.2


def roi_iou(net: MaskRCNN) -> None:
    net.roi_heads.proposal_matcher.high_threshold = 0.5


def sampling(net: MaskRCNN) -> None:
    net.roi_heads.fg_bg_sampler.positive_fraction = 0.02


def box_weights(net: MaskRCNN) -> None:
    net.roi_heads.box_coder.weights = (1.0, 1.0, 1.0, 1.0)


def masks(net: MaskRCNN) -> None:
    net.roi_heads.mask_roi_pool.sampling_ratio = 1


CHANGES = {
    batch_norm_eps: LOSSES,
    rpn_iou: ["loss_objectness"],
    roi_iou: ["loss_classifier"],
    sampling: ["loss_classifier"],
    box_weights: ["loss_box_reg"],
    masks: ["loss_mask"],
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_the_comparison_detects_a_difference(done, change: Callable[[MaskRCNN], None] | None):
    task, given, here = done
    trunk = Trunk("resnet18", {"layer2": "0"}, [128])
    reference = torchvisions(task.net, trunk=trunk, mask_layers=(128,))
    if change:
        change(reference)
    with torch.no_grad():
        there = theirs(reference, task, given=given)
    assert set(CHANGES.get(change, [])) <= set(different(here, there))
    assert bool(different(here, there)) == bool(change)


def test_a_slice_without_a_lesion_can_be_learned_from(lesions):
    task = small_task(lesions)
    task.train()
    pixels, masks, labels = task.read(1)
    assert (len(masks), len(labels)) == (0, 0)
    losses = task.losses(task.module, [(pixels, masks, labels)], device=CPU)
    assert sorted(losses) == LOSSES
    assert all(value.isfinite() for value in losses.values())
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    assert losses["loss_objectness"] > 0
    assert losses["loss_classifier"] > 0
    sum(losses.values()).backward()
    # all of them, or other workers would wait for the rest
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.net.parameters())


def test_slices_with_and_without_lesions_share_a_batch(lesions):
    task = small_task(lesions)
    task.train()
    losses = task.losses(task.module, [task.read(1), task.read(0)], device=CPU)
    assert all(value.isfinite() and value > 0 for value in losses.values())
