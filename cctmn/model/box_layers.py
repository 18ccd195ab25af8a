"""The layers of the box head for pooled features as RoIAlign's gather leaves them in memory."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from cctmn.model.backbone import CHANNELS
from cctmn.model.constants import ROI_CELLS
from cctmn.model.cpu_layers import linear


class ChannelsLastBoxLayers:
    """The two layers of a box head for pooled features in channels-last memory, without gradients.

    The first layer reads all features of a box in one row. Its weights are permuted once, so that
    the row need not be: a copy of 50 MB for 1,000 boxes.
    """

    def __init__(self, head: TwoMLPHead) -> None:
        cells = ROI_CELLS**2
        by_channel = head.fc6.weight.detach().unflatten(1, (CHANNELS, cells))
        weight = by_channel.transpose(1, 2).flatten(1)
        self._first = linear(weight, head.fc6.bias.detach())
        self._second = head.fc7

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return P x ROI_WIDTH from P x C x S x S."""
        rows = pooled.permute(0, 2, 3, 1).flatten(1)
        return F.relu(self._second(F.relu(self._first(rows))))
