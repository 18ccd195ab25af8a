"""The constants of both networks, which are the author's (method.md) and the same for every model.

They stand apart from the networks so that a report can show them without importing torch.
"""

from __future__ import annotations

from typing import Final

# Stage 1: anchors, region proposals, heads, masks.
ANCHOR_SIZES_PX: Final = (2, 4, 8, 16, 32)
ASPECT_RATIOS: Final = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)  # height / width

RPN_FOREGROUND_IOU: Final = 0.7
RPN_BACKGROUND_IOU: Final = 0.3
RPN_SAMPLES: Final = 256  # anchors per slice in the loss
RPN_POSITIVE: Final = 0.75  # largest fraction of positive ones among them
RPN_NMS_IOU: Final = 0.75
PROPOSALS: Final = {"training": 2000, "testing": 1000}  # per level before NMS, per slice after it

ROI_FOREGROUND_IOU: Final = 0.75
ROI_BACKGROUND_IOU: Final = 0.5  # proposals between the two are ignored
ROI_SAMPLES: Final = 256
ROI_POSITIVE: Final = 0.75
ROI_CELLS: Final = 7
ROI_SAMPLING: Final = 2
ROI_WIDTH: Final = 128  # of both fully connected layers

MASK_CELLS: Final = 14  # the predictor doubles them to 28
MASK_LAYERS: Final = {"resnet18": (128,), "resnet34": (128,), "resnet50": (256,) * 4}
# Threshold of the logit, which is pasted without a sigmoid. The author's masks are the pixels whose
# logit exceeds 0.5, which is a probability of 0.62. Their areas are 4 % smaller than those by the
# rule of torchvision.
MASK_LOGIT: Final = 0.5

# Stage 2: the boxes that module S receives. No probability is below the score, so all boxes pass.
RANKED_NMS_IOU: Final = 0.75
RANKED_MIN_SCORE: Final = -0.01
