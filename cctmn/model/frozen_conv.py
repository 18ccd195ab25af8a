"""Convolutions whose weights are not trained, but that gradients pass through.

Stage 2 trains batch norm below frozen convolutions. On the CPU in float32, Winograd's algorithm
computes both passes of a wide 3 x 3 convolution: the gradient of its input is a convolution too, by
the transposed weights turned by 180 degrees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cctmn.model import winograd
from cctmn.model.cpu_layers import is_winograd_faster
from cctmn.model.shapes import shapes_alone

# The two passes of a convolution: outputs from inputs, and their gradients backwards.
Passes = tuple[winograd.WinogradConv, winograd.WinogradConv]


class FrozenConv(nn.Conv2d):
    """A `Conv2d` without trained weights, which it shares with the one that it is made of.

    Its values and gradients differ from those of `Conv2d` by rounding alone. It stays an ordinary
    `Conv2d` on a GPU, under autocast and for checkpoints.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        assert winograd.fits(conv), conv
        with shapes_alone():
            super().__init__(conv.in_channels, conv.out_channels, 3, padding=1)
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self._passes: tuple[tuple[int, int], Passes] | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B x O x H x W."""
        assert not self.weight.requires_grad, "it gives its weights no gradient"
        is_plain = x_BCHW.device.type == "cpu" and x_BCHW.dtype == torch.float32
        if not is_plain or torch.is_autocast_enabled("cpu"):
            return super().forward(x_BCHW)
        y_BOHW: Tensor = _TwoPasses.apply(x_BCHW, self._current())
        return y_BOHW

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the layers of the passes: a copy makes its own, for oneDNN's have no copies."""
        return {**self.__dict__, "_passes": None}

    def _current(self) -> Passes:
        """Return the layers of both passes; they are built anew if the weights have changed."""
        held = self.weight.data_ptr(), self.weight._version
        if self._passes is None or self._passes[0] != held:
            back = nn.Conv2d(self.out_channels, self.in_channels, 3, padding=1, bias=False)
            back.weight.data = self.weight.detach().transpose(0, 1).flip(2, 3)
            self._passes = held, (winograd.WinogradConv(self), winograd.WinogradConv(back))
        return self._passes[1]


class _TwoPasses(torch.autograd.Function):
    """Winograd's convolution, and its gradient with respect to the input."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, passes: Passes) -> Tensor:
        """Return the outputs, B x O x H x W."""
        ctx.backwards = passes[1]
        y_BOHW: Tensor = passes[0](x_BCHW)
        return y_BOHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the input, B x C x H x W."""
        return ctx.backwards(gradient), None


def use_for_frozen(module: nn.Module) -> None:
    """Let the wide 3 x 3 convolutions in a module whose weights are frozen be `FrozenConv`."""
    for part in list(module.modules()):
        for name, layer in list(part.named_children()):
            is_frozen = not any(weight.requires_grad for weight in layer.parameters())
            if is_frozen and type(layer) is nn.Conv2d and is_winograd_faster(layer):
                setattr(part, name, FrozenConv(layer))
