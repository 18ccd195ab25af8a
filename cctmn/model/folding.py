"""Batch norm on running statistics as a part of the convolution before it, for inference."""

from __future__ import annotations

import copy
from itertools import chain, pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cctmn.model.detector import Detector


def folded(detector: Detector) -> Detector:
    """Return a detector in eval mode without batch norm; the given one stays as it is.

    Layers that are not replaced share their weights with it. Values differ by rounding alone.
    """
    assert not detector.training, "batch norm must be on its running statistics"
    weights = {id(tensor): tensor for tensor in chain(detector.parameters(), detector.buffers())}
    twin = copy.deepcopy(detector, weights)
    for module in list(twin.backbone.modules()):
        _fold(module)
    return twin


def _fold(module: nn.Module) -> None:
    for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            both = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
            setattr(module, conv_name, both.float())
            setattr(module, norm_name, nn.Identity())
