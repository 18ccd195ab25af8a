"""The faster layers of inference on the CPU give the values of the network's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cctmn.model import onednn, winograd, winograd_native
from cctmn.model.checkpoint import fresh
from cctmn.model.cpu_layers import PointwiseConv, linear, with_cpu_layers
from cctmn.model.inference import Predictor
from tests.model.conftest import classifier_arch, made_up

needs_library = pytest.mark.skipif(
    not (winograd_native.usable() and onednn.usable()),
    reason="winograd.c was not compiled here, or torch has no oneDNN",
)
needs_onednn = pytest.mark.skipif(not onednn.usable(), reason="torch has no oneDNN here")


@pytest.fixture(params=["torch", pytest.param("library", marks=needs_library)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways to transform, one after the other."""
    if request.param == "torch":
        monkeypatch.setattr(winograd_native, "usable", lambda: False)
    return str(request.param)


def exact(conv: nn.Conv2d, x_BCHW: torch.Tensor) -> torch.Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(
        x_BCHW.double(), conv.weight.double(), bias, conv.stride, conv.padding, groups=conv.groups
    )


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (4, 4), (5, 3), (17, 16), (30, 131), (64, 1), (128, 128)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_is_a_convolution(way: str, height: int, width: int, bias: bool) -> None:
    torch.manual_seed(height * width)
    conv = nn.Conv2d(128, 48, 3, padding=1, bias=bias)
    x_BCHW = torch.randn(2, 128, height, width)
    expected = exact(conv, x_BCHW)
    with torch.inference_mode():
        actual = winograd.WinogradConv(conv)(x_BCHW)
        alone = winograd.WinogradConv(conv)(x_BCHW[1:])
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=0)
    assert torch.equal(actual[1:], alone), "a slice depends on its neighbours"


def test_winograd_takes_any_number_of_channels(way: str) -> None:
    conv = nn.Conv2d(20, 24, 3, padding=1)
    x_BCHW = torch.randn(1, 20, 9, 7)
    with torch.inference_mode():
        actual = winograd.WinogradConv(conv)(x_BCHW)
    torch.testing.assert_close(actual.double(), exact(conv, x_BCHW), atol=2e-5, rtol=0)


def test_winograd_takes_an_empty_batch(way: str) -> None:
    """As the mask head's, of a slice without lesions."""
    conv = nn.Conv2d(64, 48, 3, padding=1)
    with torch.inference_mode():
        assert winograd.WinogradConv(conv)(torch.zeros(0, 64, 14, 14)).shape == (0, 48, 14, 14)


def test_winograd_gives_back_bfloat16_rounded_once(way: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x_BCHW = torch.randn(1, 64, 33, 40).bfloat16()
    with torch.inference_mode():
        layer = winograd.WinogradConv(conv)
        actual, wide = layer(x_BCHW), layer(x_BCHW.float())
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, wide.bfloat16())


def test_winograd_keeps_nan_and_infinity(way: str) -> None:
    conv = nn.Conv2d(64, 64, 3, padding=1)
    for value in (torch.nan, torch.inf):
        x_BCHW = torch.zeros(1, 64, 8, 8)
        x_BCHW[0, 3, 4, 4] = value
        for dtype in (torch.float32, torch.bfloat16):
            with torch.inference_mode():
                actual = winograd.WinogradConv(conv)(x_BCHW.to(dtype))
            assert not actual[0, :, 4, 4].isfinite().any(), (value, dtype)


@needs_library
def test_the_library_refuses_tensors_that_it_would_misread() -> None:
    good, tiles = torch.zeros(4, 4, 32), torch.zeros(1, 36, 32)
    winograd_native.inputs(good, tiles, first=0, columns=1)
    for bad in (
        (good.double(), tiles),
        (good.transpose(0, 1)[:, 1:], tiles),
        (torch.zeros(4, 4, 24), torch.zeros(1, 36, 24)),
        (good, tiles.bfloat16()),
        (good, torch.zeros(1, 36, 16)),
    ):
        with pytest.raises(AssertionError):
            winograd_native.inputs(*bad, first=0, columns=1)


@needs_onednn
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (7, 2)])
def test_a_convolution_with_packed_weights_is_the_convolution(
    kernel: int, stride: int, groups: int
) -> None:
    torch.manual_seed(kernel)
    conv = nn.Conv2d(16, 32, kernel, stride, padding=kernel // 2, groups=groups)
    layer = onednn.OneDnnConv(conv)
    for size in ((24, 32), (40, 17)):  # the weights are packed for the first of them
        x_BCHW = torch.randn(2, 16, *size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            actual = layer(x_BCHW)
        assert actual.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(actual.double(), exact(conv, x_BCHW), atol=1e-5, rtol=0)


@needs_onednn
def test_a_packed_convolution_computes_in_bfloat16_if_asked() -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1)
    x_BCHW = torch.randn(1, 16, 9, 9)
    with torch.inference_mode():
        actual = onednn.OneDnnConv(conv, dtype=torch.bfloat16)(x_BCHW)
        narrow = nn.Conv2d(16, 32, 3, padding=1)
        narrow.weight.copy_(conv.weight.bfloat16())
        narrow.bias.copy_(conv.bias.bfloat16())
        expected = narrow(x_BCHW.bfloat16().float())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("packed", [pytest.param(True, marks=needs_onednn), False])
def test_a_linear_layer_takes_any_number_of_rows(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(onednn, "usable", lambda: False)
    weight_OC, bias_O = torch.randn(5, 48), torch.randn(5)
    layer = linear(weight_OC, bias_O)
    for rows in (7, 0, 1):
        x_NC = torch.randn(rows, 48)
        torch.testing.assert_close(layer(x_NC), F.linear(x_NC, weight_OC, bias_O))


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


@pytest.mark.parametrize("packed", [pytest.param(True, marks=needs_onednn), False])
@pytest.mark.parametrize(("backbone", "truncation"), [("resnet18", 1), ("resnet50", 0)])
def test_the_feature_maps_are_those_of_the_networks_own_layers(
    backbone: str, truncation: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(onednn, "usable", lambda: False)
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
        detector.double()
        expected = detector.backbone(x_B3HW.double())
        outputs = detector.rpn.head(list(expected.values()))
        detector.float()
        actual = twin.backbone(x_B3HW.contiguous(memory_format=torch.channels_last))
        ours = twin.rpn.head(list(actual.values()))
    assert expected.keys() == actual.keys()
    pairs = [(actual[name], feature) for name, feature in expected.items()]
    pairs += zip((*ours[0], *ours[1]), (*outputs[0], *outputs[1]), strict=True)
    for one, other in pairs:
        assert one.shape == other.shape
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
    kinds = {type(layer) for layer in twin.backbone.modules()}
    assert nn.BatchNorm2d not in kinds
    assert {winograd.WinogradConv, onednn.OneDnnConv if packed else PointwiseConv} <= kinds
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), f"{name}: the given network was changed"


def test_the_predictor_uses_them_unless_it_is_told_not_to() -> None:
    net = fresh(classifier_arch(), seed=0).eval()
    (image,) = made_up(1, size=(512, 512))
    ours = Predictor(net).predict([image])[0]
    own = Predictor(net, own_layers=True).predict([image])[0]
    np.testing.assert_allclose(ours.logits_C, own.logits_C, atol=1e-4)
    np.testing.assert_allclose(ours.ranked_boxes_N4, own.ranked_boxes_N4, atol=1e-2)
