"""Writes a net in the author's file format and names, for the tests of the importer."""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections import OrderedDict

import torch
from torch import nn

from cctmn.model.constants import ANCHOR_SIZES_PX, ASPECT_RATIOS


def old_names(net):
    """The state dict under the names of torchvision 0.3 and of the author."""
    renamed = OrderedDict()
    for name, tensor in net.state_dict().items():
        name = name.removeprefix("detector.")
        name = re.sub(r"(fpn\.\w+_blocks\.\d+)\.0\.", r"\1.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(
            r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name
        )
        for i, part in ((0, "fc_scores"), (2, "fc_scores_2"), (4, "fc_scores_img")):
            name = name.replace(f"module_s.{i}.", f"s2new.{part}.")
        renamed[name] = tensor
    return renamed


def write(path, weights, *, new_format=True, sizes=ANCHOR_SIZES_PX, module="rpn"):
    """torch.save as the author does, the anchor generator being an object of his class."""
    name = f"models.mask_net.{module}"

    class AnchorGenerator(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = (sizes,) * 4
            self.aspect_ratios = (ASPECT_RATIOS,) * 4
            self.cell_anchors = [torch.zeros(30, 4)]
            self._cache = {}

    AnchorGenerator.__module__ = name
    AnchorGenerator.__qualname__ = "AnchorGenerator"
    stand_in = types.ModuleType(name)
    stand_in.AnchorGenerator = AnchorGenerator
    parents = {"models": types.ModuleType("models")}
    parents["models.mask_net"] = types.ModuleType("models.mask_net")
    sys.modules.update(parents | {name: stand_in})
    content = {
        "epoch": 7,
        "model_name": "made up",
        "model_weights": weights,
        "optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "anchor_generator": AnchorGenerator(),
        "lrate": 1e-5,
    }
    try:
        with warnings.catch_warnings():
            # The old format keeps the source text of the class, and warns that there is none.
            warnings.filterwarnings("ignore", "Couldn't retrieve source code")
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
    finally:
        for key in (*parents, name):
            del sys.modules[key]
    return path
