"""A detector with faster layers in place of some of its own, for inference on the CPU.

- Batch norm on running statistics is a part of the convolution before it, and the two outputs of
  the RPN's head are one convolution.
- Wide 3 x 3 convolutions use Winograd's algorithm.
- Other convolutions are oneDNN's, with weights in its own layout. Where torch lacks that, those of
  1 x 1 are matrix products: on one thread, torch computes some of them by a kernel that copies its
  input first.

In float32, predictions differ from those of the network's own layers by rounding alone. bfloat16 is
for the backbone, but not for Winograd's products: his transforms make its rounding five times as
large. The heads stay float32, for module S reads boxes by their rank.
"""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import rpn

from cctmn.model import onednn, winograd, winograd_native
from cctmn.model.detector import Detector
from cctmn.model.folding import folded
from cctmn.model.shapes import shapes_alone

# Below, the transforms take as much time as the products save; above, reading the weights does.
WINOGRAD_CHANNELS: Final = range(128, 512)
NATIVE_WINOGRAD_CHANNELS: Final = range(64, 513)  # where the transforms are compiled


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


class RpnHead(nn.Module):
    """torchvision's RPN head with its two outputs as one convolution, which reads a map once."""

    def __init__(self, head: rpn.RPNHead) -> None:
        super().__init__()
        self._hidden = head.conv
        outputs = (head.cls_logits, head.bbox_pred)
        self._widths = [conv.out_channels for conv in outputs]
        with shapes_alone():
            both = nn.Conv2d(head.cls_logits.in_channels, sum(self._widths), 1)
        for name in ("weight", "bias"):
            parts = [getattr(conv, name).detach() for conv in outputs]
            setattr(both, name, nn.Parameter(torch.cat(parts), requires_grad=False))
        self._outputs = _faster(both, torch.float32)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits (B x A x H x W) and deltas (B x 4A x H x W) of each map."""
        both = [self._outputs(self._hidden(x_BCHW)) for x_BCHW in maps]
        logits, deltas = zip(*(one.split(self._widths, dim=1) for one in both), strict=True)
        return list(logits), list(deltas)


def with_cpu_layers(detector: Detector, *, dtype: torch.dtype = torch.float32) -> Detector:
    """Return a detector in eval mode with faster layers; the given one stays as it is.

    Those of the backbone compute in `dtype`, float32 or bfloat16, and it returns that type. Those
    of the heads compute in float32.

    Layers that are not replaced share their weights with it.
    """
    twin = folded(detector)
    twin.rpn.head = RpnHead(twin.rpn.head)
    _replace_convolutions(twin.backbone, dtype)
    _replace_convolutions(twin.rpn.head, torch.float32)
    if twin.roi_heads.has_mask():
        _replace_convolutions(twin.roi_heads.mask_head, torch.float32)
        _replace_convolutions(twin.roi_heads.mask_predictor, torch.float32)
    return twin


def linear(weight_OC: Tensor, bias_O: Tensor) -> nn.Module:
    """Return a linear layer, N x C to N x O: oneDNN's on the CPU, elsewhere torch's."""
    if weight_OC.device.type == "cpu" and onednn.usable():
        return onednn.OneDnnLinear(weight_OC, bias_O)
    with shapes_alone():
        layer = nn.Linear(weight_OC.shape[1], weight_OC.shape[0])
    layer.weight = nn.Parameter(weight_OC, requires_grad=False)
    layer.bias = nn.Parameter(bias_O, requires_grad=False)
    return layer


def _replace_convolutions(part: nn.Module, dtype: torch.dtype) -> None:
    for module in list(part.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv2d):
                setattr(module, name, _faster(layer, dtype))


def is_winograd_faster(conv: nn.Conv2d) -> bool:
    """Whether Winograd's algorithm computes a convolution faster than oneDNN does directly."""
    wide = NATIVE_WINOGRAD_CHANNELS if winograd_native.usable() else WINOGRAD_CHANNELS
    return winograd.fits(conv) and conv.in_channels in wide


def _faster(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    if is_winograd_faster(conv):
        return winograd.WinogradConv(conv)
    if onednn.usable():
        return onednn.OneDnnConv(conv, dtype=dtype)
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1:
        return PointwiseConv(conv)
    return copy.deepcopy(conv).to(memory_format=torch.channels_last)
