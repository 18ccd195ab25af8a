"""Frozen convolutions let gradients through as ordinary ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cctmn.model import frozen_conv
from cctmn.model.frozen_conv import FrozenConv


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 40, 3, padding=1, bias=bias).requires_grad_(requires_grad=False)
    x_BCHW, arriving = torch.randn(2, 128, 13, 22), torch.randn(2, 40, 13, 22)
    values, gradients = [], []
    for layer in (conv, FrozenConv(conv)):
        given = x_BCHW.clone().requires_grad_()
        values.append(layer(given))
        values[-1].backward(arriving)
        gradients.append(given.grad)
    torch.testing.assert_close(*values, rtol=0, atol=2e-5)
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-5)


def test_weights_that_were_loaded_later_count() -> None:
    conv = nn.Conv2d(128, 8, 3, padding=1).requires_grad_(requires_grad=False)
    layer, x_BCHW = FrozenConv(conv), torch.randn(1, 128, 8, 8)
    layer(x_BCHW)
    layer.load_state_dict({name: 2 * value for name, value in conv.state_dict().items()})
    torch.testing.assert_close(layer(x_BCHW), conv(x_BCHW), rtol=0, atol=2e-5)


def test_a_checkpoint_does_not_show_the_kind_of_layer() -> None:
    net = nn.Sequential(nn.Conv2d(128, 8, 3, padding=1)).requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    frozen_conv.use_for_frozen(net)
    assert type(net[0]) is FrozenConv
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_convolution_with_trained_weights_stays() -> None:
    net = nn.Sequential(nn.Conv2d(128, 8, 3, padding=1))
    frozen_conv.use_for_frozen(net)
    assert type(net[0]) is nn.Conv2d


def test_autocast_takes_the_ordinary_convolution() -> None:
    conv = nn.Conv2d(128, 8, 3, padding=1).requires_grad_(requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert FrozenConv(conv)(torch.randn(1, 128, 8, 8)).dtype == torch.bfloat16


def test_a_copy_of_a_used_layer_computes_the_same() -> None:
    conv = nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False)
    layer = FrozenConv(conv)
    x_BCHW = torch.randn(1, 128, 8, 8)
    assert torch.equal(layer(x_BCHW), copy.deepcopy(layer)(x_BCHW))
