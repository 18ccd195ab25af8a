"""The backbone, which turns a slice into feature maps.

It is a torchvision ResNet, cut after its last kept layer, with a feature pyramid on top. ResNet-50
feeds four levels into the pyramid, a lightweight ResNet-18 or -34 only its last kept layer (paper,
section 3).

Shape suffixes: B slices, 3 colour channels, H W px.
"""

from __future__ import annotations

from typing import Final

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork

from cctmn.model.card import LAST_LAYER, Arch

CHANNELS: Final = 256  # of every pyramid level (method.md, stage 1)

Size = tuple[int, int]  # height, width in px


class Backbone(nn.Module):
    """ResNet with ordinary batch norm, and a feature pyramid without an extra pooled level."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, arch.backbone)(weights=None)
        widths = [resnet.fc.in_features >> (LAST_LAYER - layer) for layer in arch.layers]
        names = {f"layer{layer}": str(i) for i, layer in enumerate(arch.layers)}
        # The getter drops the layers that no level needs, the classification layer among them.
        self.body = IntermediateLayerGetter(resnet, return_layers=names)
        self.fpn = FeaturePyramidNetwork(widths, CHANNELS)

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Feature maps "0", "1" ..., finest first, of normalised slices.

        H and W are multiples of 32.
        """
        features: dict[str, Tensor] = self.fpn(self.body(x_B3HW))
        return features
