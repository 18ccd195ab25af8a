"""The faster layers of inference on the CPU give the values of the network's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cctmn.model import winograd
from cctmn.model.checkpoint import fresh
from cctmn.model.cpu_layers import PointwiseConv, with_cpu_layers
from cctmn.model.inference import Predictor
from tests.model.conftest import classifier_arch, made_up


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (4, 4), (5, 3), (17, 16), (30, 131), (64, 1), (128, 128)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_is_a_convolution(height: int, width: int, bias: bool) -> None:
    torch.manual_seed(height * width)
    conv = nn.Conv2d(128, 24, 3, padding=1, bias=bias)
    x_BCHW = torch.randn(2, 128, height, width)
    expected = F.conv2d(
        x_BCHW.double(),
        conv.weight.double(),
        conv.bias.double() if bias else None,
        padding=1,
    )
    with torch.inference_mode():
        actual = winograd.WinogradConv(conv)(x_BCHW)
        alone = winograd.WinogradConv(conv)(x_BCHW[1:])
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=0)
    assert torch.equal(actual[1:], alone), "a slice depends on its neighbours"


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 5, padding=2),
    ],
)
def test_winograd_is_for_one_kind_of_convolution(other: nn.Conv2d) -> None:
    assert not winograd.fits(other)


def test_a_convolution_of_one_pixel_is_a_matrix_product() -> None:
    conv = nn.Conv2d(16, 5, 1)
    x_BCHW = torch.randn(2, 16, 7, 9)
    torch.testing.assert_close(PointwiseConv(conv)(x_BCHW), conv(x_BCHW))


@pytest.mark.parametrize(("backbone", "truncation"), [("resnet18", 1), ("resnet50", 0)])
def test_the_feature_maps_are_those_of_the_networks_own_layers(
    backbone: str, truncation: int
) -> None:
    detector = fresh(classifier_arch(backbone, truncation), seed=0).eval().detector
    generator = torch.Generator().manual_seed(1)
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):  # else folding it would change nothing
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    twin = with_cpu_layers(detector)
    x_B3HW = torch.randn(1, 3, 96, 160, generator=generator)
    with torch.inference_mode():
        expected = detector.double().backbone(x_B3HW.double())
        detector.float()
        actual = twin.backbone(x_B3HW.contiguous(memory_format=torch.channels_last))
    assert expected.keys() == actual.keys()
    for name, feature in expected.items():
        difference = (actual[name] - feature).abs().max() / feature.abs().max()
        assert float(difference) < 1e-5, name
    kinds = {type(layer) for layer in twin.backbone.modules()}
    assert nn.BatchNorm2d not in kinds
    assert {winograd.WinogradConv, PointwiseConv} <= kinds
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), f"{name}: the given network was changed"


def test_the_predictor_uses_them_unless_it_is_told_not_to() -> None:
    net = fresh(classifier_arch(), seed=0).eval()
    (image,) = made_up(1, size=(512, 512))
    ours = Predictor(net).predict([image])[0]
    own = Predictor(net, own_layers=True).predict([image])[0]
    np.testing.assert_allclose(ours.logits_C, own.logits_C, atol=1e-4)
    np.testing.assert_allclose(ours.ranked_boxes_N4, own.ranked_boxes_N4, atol=1e-2)
