"""The proposals in eval mode are those of torchvision's steps, though few anchors are decoded."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from cctmn.model import ranking
from cctmn.model.checkpoint import fresh
from cctmn.model.detector import RankedRPN
from tests.model.conftest import arch


@pytest.mark.parametrize(("backbone", "truncation"), [("resnet18", 1), ("resnet50", 0)])
def test_they_are_the_same_bits_as_by_torchvision(backbone: str, truncation: int) -> None:
    detector = fresh(arch(backbone, truncation), seed=0).eval()
    torch.manual_seed(1)
    x_B3HW, sizes = torch.randn(2, 3, 128, 160), [(128, 160), (120, 150)]
    images = ImageList(x_B3HW, sizes)
    with torch.inference_mode():
        features = detector.backbone(x_B3HW)
        ours, losses = detector.rpn(images, features)
        theirs, _ = super(RankedRPN, detector.rpn).forward(images, features)
    assert losses == {}
    assert len(ours) == len(theirs) == 2
    for mine, expected in zip(ours, theirs, strict=True):
        assert len(mine) > 100
        assert torch.equal(mine, expected)


def test_a_proposal_without_area_makes_no_candidate() -> None:
    """So the box head need not look at it."""
    torch.manual_seed(0)
    flat = torch.tensor([[5.0, 5.0, 5.0, 40.0], [0.0, 9.0, 30.0, 9.0], [7.0, 7.0, 7.0, 7.0]])
    proposals_P4 = torch.cat([flat, torch.tensor([[3.0, 3.0, 20.0, 30.0]])])
    one = ranking.candidates(
        torch.randn(4, 3),
        deltas_P4K=5 * torch.randn(4, 12),
        proposals_P4=proposals_P4,
        size_px=(64, 64),
    )
    assert set(one.proposals_R.tolist()) == {3}
