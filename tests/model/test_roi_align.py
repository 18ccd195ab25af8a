"""The gathered RoIAlign gives the values of torchvision's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from cctmn.model.roi_align import RoiAlign
from tests.model.conftest import arch

SIZE = (512, 384)


def features(count: int, *, strides: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in strides]
    return {str(k): torch.randn(count, 256, *shape) for k, shape in enumerate(shapes)}


def boxes(count: int) -> Tensor:
    """Small and large boxes, some without area and some beyond the edge of the slice."""
    corner = torch.rand(count, 2) * 560 - 40
    side = torch.rand(count, 2) ** 3 * 400
    side[::7] = 0
    return torch.cat([corner, corner + side], dim=1)


@pytest.mark.parametrize(("backbone", "truncation"), [("resnet18", 1), ("resnet50", 0)])
@pytest.mark.parametrize("cells", [7, 14])
def test_values_equal_torchvisions(backbone: str, truncation: int, cells: int) -> None:
    torch.manual_seed(cells)
    made = arch(backbone, truncation)
    pool = RoiAlign(made, cells)
    maps = features(2, strides=tuple(made.strides_px))
    of_slices = [boxes(90), boxes(40)]
    with torch.no_grad():
        ours = pool(maps, of_slices, [SIZE, SIZE])
        theirs = MultiScaleRoIAlign.forward(pool, maps, of_slices, [SIZE, SIZE])
    assert ours.shape == theirs.shape == (130, 256, cells, cells)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("backbone", "truncation"), [("resnet18", 1), ("resnet50", 0)])
def test_gradients_equal_torchvisions(backbone: str, truncation: int) -> None:
    torch.manual_seed(1)
    made = arch(backbone, truncation)
    pool = RoiAlign(made, 7)
    of_slices = [boxes(40), boxes(0), boxes(20)]
    arriving = torch.randn(60, 256, 7, 7)
    gradients = []
    for forward in (pool.forward, partial(MultiScaleRoIAlign.forward, pool)):
        torch.manual_seed(2)
        maps = features(3, strides=tuple(made.strides_px))
        for one in maps.values():
            one.requires_grad_()
        forward(maps, of_slices, [SIZE] * 3).backward(arriving)
        gradients.append({name: one.grad for name, one in maps.items()})
    ours, theirs = gradients
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=2e-5)


def test_gradients_repeat_bit_by_bit() -> None:
    made = arch()
    pool, given = RoiAlign(made, 7), boxes(50)
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        maps = features(1, strides=tuple(made.strides_px))
        maps["0"].requires_grad_()
        pool(maps, [given], [SIZE]).square().sum().backward()
        seen.append(maps["0"].grad)
    assert torch.equal(*seen)


def test_no_box_gives_gradients_of_zero() -> None:
    made = arch()
    maps = features(1, strides=tuple(made.strides_px))
    maps["0"].requires_grad_()
    RoiAlign(made, 7)(maps, [boxes(0)], [SIZE]).sum().backward()
    assert maps["0"].grad is not None
    assert not maps["0"].grad.any()


def test_features_in_bfloat16_are_pooled_too() -> None:
    torch.manual_seed(0)
    made, given = arch(), boxes(20)
    maps = features(1, strides=tuple(made.strides_px))
    rounded = {name: one.bfloat16() for name, one in maps.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pooled = RoiAlign(made, 7)(rounded, [given], [SIZE])
    assert pooled.shape == (20, 256, 7, 7)
    assert pooled.isfinite().all()


def test_no_box_gives_no_row() -> None:
    made = arch()
    with torch.no_grad():
        maps = features(1, strides=tuple(made.strides_px))
        assert RoiAlign(made, 7)(maps, [boxes(0)], [SIZE]).shape == (0, 256, 7, 7)
