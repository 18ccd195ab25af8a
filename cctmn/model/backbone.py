"""The shape of a model, and the trunk that turns a slice into feature maps.

In: an `Arch`, the few facts that fix every weight's shape. Out: `Backbone`, a torchvision ResNet
cut after its last kept layer with a feature pyramid on top. ResNet-50 feeds four levels into the
pyramid, a lightweight ResNet-18 or -34 only its last kept layer (paper, section 3).

Shape suffixes: B slices, 3 colour channels, H W px.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork

from cctmn.errors import ModelError

BACKBONES: Final = ("resnet18", "resnet34", "resnet50")
CHANNELS: Final = 256  # of every pyramid level (method.md, stage 1)
RANKED: Final[Mapping[str, int]] = {"resnet18": 128, "resnet34": 128, "resnet50": 256}  # N
HIDDEN: Final[Mapping[str, int]] = {"resnet18": 512, "resnet34": 512, "resnet50": 1024}  # F
LAST_LAYER: Final = 4  # residual layers of a ResNet
MAX_SIZE: Final = 65_536  # of N and F: far above any use, below what exhausts memory


@dataclass(frozen=True)
class Arch:
    """All that fixes the shapes of a model's weights.

    `truncation` counts the residual layers dropped from the end of a lightweight backbone.
    `lesion_classes` leaves out the background (label 0). Without `image_classes` the model is a
    detector, which uses neither `ranked` (N, boxes that module S sees) nor `hidden` (F, its width).
    Raises ModelError for a combination that the method does not have.
    """

    backbone: str
    truncation: int
    lesion_classes: tuple[str, ...]
    mask_head: bool
    image_classes: tuple[str, ...] = ()
    ranked: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ModelError(f"backbone {self.backbone!r} is unknown; use one of {BACKBONES}")
        if self.truncation not in (0, 1, 2):
            raise ModelError(f"truncation {self.truncation!r} is not possible; use 0, 1 or 2")
        if self.truncation and self.backbone == "resnet50":
            raise ModelError("resnet50 keeps all its layers; use truncation 0 or another backbone")
        for field, names in (("lesion", self.lesion_classes), ("image", self.image_classes)):
            if len(set(names)) != len(names) or "" in names:
                raise ModelError(f"{field} classes {names} must be distinct and not empty")
        if not self.lesion_classes:
            raise ModelError("a model needs at least one lesion class")
        if len(self.image_classes) == 1:
            raise ModelError("a classifier needs at least two image classes")
        if self.image_classes and self.mask_head:
            raise ModelError("a classifier has no mask head; use mask_head = false")
        smallest = 1 if self.image_classes else 0
        for field, size in (("ranked", self.ranked), ("hidden", self.hidden)):
            if not smallest <= size <= MAX_SIZE:
                raise ModelError(f"{field} {size} must lie between {smallest} and {MAX_SIZE}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual layers that feed the pyramid, by number from 1."""
        if self.backbone == "resnet50":
            return (1, 2, 3, 4)
        return (LAST_LAYER - self.truncation,)

    @property
    def strides_px(self) -> tuple[int, ...]:
        """Pixels of the input per cell of each pyramid level: 4 at layer 1, doubled by each."""
        return tuple(2 ** (layer + 1) for layer in self.layers)


class Backbone(nn.Module):
    """ResNet with ordinary batch norm, and a feature pyramid without an extra pooled level."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, arch.backbone)(weights=None)
        widths = [resnet.fc.in_features >> (LAST_LAYER - layer) for layer in arch.layers]
        names = {f"layer{layer}": str(i) for i, layer in enumerate(arch.layers)}
        self.body = IntermediateLayerGetter(resnet, return_layers=names)  # drops the rest, with fc
        self.fpn = FeaturePyramidNetwork(widths, CHANNELS)

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Normalised slices, H and W multiples of 32 -> feature maps "0", "1" ..., finest first."""
        features: dict[str, Tensor] = self.fpn(self.body(x_B3HW))
        return features
