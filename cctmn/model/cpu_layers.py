"""A detector with faster layers in place of some of its own, for inference in float32 on the CPU.

- Batch norm on running statistics is a part of the convolution before it.
- Wide 3 x 3 convolutions use Winograd's algorithm.
- 1 x 1 convolutions are matrix products: on one thread, torch computes some of them by a kernel
  that copies its input first.

Predictions differ from those of the network's own layers by rounding alone.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cctmn.model import winograd
from cctmn.model.detector import Detector

# Below, the transforms take as much time as the products save; above, reading the weights does.
WINOGRAD_CHANNELS: Final = range(128, 512)


class PointwiseConv(nn.Module):
    """A `Conv2d` of 1 x 1 and stride 1 as one matrix product in channels-last memory."""

    weight: Tensor  # O x C
    bias: Tensor | None  # O

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.detach()[:, :, 0, 0])
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B x O x H x W."""
        y_BHWO = F.linear(x_BCHW.permute(0, 2, 3, 1), self.weight, self.bias)
        return y_BHWO.permute(0, 3, 1, 2)


def with_cpu_layers(detector: Detector) -> Detector:
    """Return a detector in eval mode with faster layers; the given one stays as it is.

    Layers that are not replaced share their weights with it.
    """
    assert not detector.training, "batch norm must be on its running statistics"
    weights = {id(tensor): tensor for tensor in chain(detector.parameters(), detector.buffers())}
    twin = copy.deepcopy(detector, weights)
    for part in (twin.backbone, twin.rpn.head):
        for module in list(part.modules()):
            _fold_batch_norm(module)
        for module in list(part.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Conv2d):
                    setattr(module, name, _faster(layer))
    return twin


def _fold_batch_norm(module: nn.Module) -> None:
    for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
            setattr(module, conv_name, folded.float())
            setattr(module, norm_name, nn.Identity())


def _faster(conv: nn.Conv2d) -> nn.Module:
    if winograd.fits(conv) and conv.in_channels in WINOGRAD_CHANNELS:
        return winograd.WinogradConv(conv)
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1:
        return PointwiseConv(conv)
    return copy.deepcopy(conv).to(memory_format=torch.channels_last)
