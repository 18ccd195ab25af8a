"""Convolutions and linear layers of oneDNN with weights in its own memory layout.

torch's `conv2d` lays out the weights anew at each call, and takes a slower kernel for some 1 x 1
convolutions and for `linear`. These layers call the operators that torch's compiler calls in their
place (`torch.ops.mkldnn`). `usable` says whether this torch has them.

oneDNN could apply ReLU as well, but its ReLU turns NaN into 0, which would hide an overflow.

Shape suffixes: B slices, C input and O output channels, H W px, N rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cctmn.model.shapes import shapes_alone


def usable() -> bool:
    """Whether torch has oneDNN, and its operators for weights in oneDNN's layout."""
    backend: Any = torch.backends.mkldnn
    return (
        backend.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    )


class OneDnnConv(nn.Module):
    """A `Conv2d` with zero padding, for inference.

    It computes in the type of its weights and returns that type, in channels-last memory.
    """

    def __init__(self, conv: nn.Conv2d, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros", conv
        assert not isinstance(conv.padding, str), conv
        self.out_channels = conv.out_channels
        self._dtype = dtype
        self._weight = conv.weight.detach().to(dtype)
        self._bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._window = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B x O x H x W."""
        x_BCHW = x_BCHW.to(self._dtype)
        if not self._weight.is_mkldnn:
            # The layout is that for this shape. It is right for every shape, and fast for most.
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._weight = reorder(self._weight.to_mkldnn(), *self._window, x_BCHW.shape)
        y_BOHW: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, self._weight, self._bias, *self._window, "none", [], ""
        )
        return y_BOHW


class OneDnnLinear(nn.Module):
    """A linear layer, as the convolution of 1 x 1 that it is."""

    def __init__(self, weight_OC: Tensor, bias_O: Tensor) -> None:
        super().__init__()
        with shapes_alone():
            conv = nn.Conv2d(weight_OC.shape[1], weight_OC.shape[0], 1)
        conv.weight = nn.Parameter(weight_OC.detach()[:, :, None, None], requires_grad=False)
        conv.bias = nn.Parameter(bias_O.detach(), requires_grad=False)
        self._conv = OneDnnConv(conv)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Return N x O."""
        if not len(x_NC):
            return x_NC.new_zeros(0, self._conv.out_channels)
        return self._conv(x_NC.t()[None, :, :, None])[0, :, :, 0].t()
