"""Slices per second of each device and model, and the other figures that a plan counts with.

Each rate has its source. `measured` means that cctmn was run and timed; `estimated` means that it
was not, and the note says from what the figure comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# CPU time of one slice of 512 x 512 in the decoder: 4 to 6 ms measured, JPEG 2000 29 ms.
DECODE_MS: Final = 6.0
DECODE_MS_JPEG2000: Final = 29.0
# The rate by which a job on GPUs is sized before any GPU is known.
GPU_SLICES_PER_S: Final = 450.0

_CORE: Final = "docs/measurements.md, two processes of one thread on two cores of an AMD EPYC"
_BEFORE: Final = "an assumption before any GPU was timed"
_BY_CORE: Final = "the assumption for resnet18, by the ratio of both models on one core"
_V100: Final = "torchvision's published 0.0903 s per image of 800 px, batch size 1"


@dataclass(frozen=True)
class Rate:
    """How many slices of 512 x 512 one device scores in a second, in float32."""

    slices_per_s: float
    is_measured: bool
    source: str

    @property
    def origin(self) -> str:
        """Whether cctmn was timed, in one word."""
        return "measured" if self.is_measured else "estimated"


# Requests for one loose DICOM object on S3, counted: one looks into it, one gets it for decoding.
READS_PER_OBJECT: Final = 2
OBJECTS_PER_LISTING: Final = 1_000  # S3's page
# Of the rate of the scorers, what a job keeps: files that wait, scorers that start and end.
EFFICIENCY: Final = 0.9
START_H: Final = 5 / 60  # for nodes to start, cluster/README.md

CORE: Final = "core"  # one core of a CPU
# By device and backbone of the model.
RATES: Final[Mapping[tuple[str, str], Rate]] = {
    (CORE, "resnet18"): Rate(5.4, True, _CORE),
    (CORE, "resnet50"): Rate(1.35, True, _CORE),
    ("h100", "resnet18"): Rate(GPU_SLICES_PER_S, False, _BEFORE),
    ("h100", "resnet50"): Rate(110.0, False, _BY_CORE),
    ("v100", "resnet50"): Rate(11.0, False, _V100),
}


def markdown() -> str:
    """Return the rates as a Markdown table."""
    lines = [
        "| device | backbone | slices per second | measured? | source |",
        "|---|---|---|---|---|",
    ]
    for (device, backbone), rate in RATES.items():
        values = f"{rate.slices_per_s:g} | {rate.origin} | {rate.source}"
        lines.append(f"| {device} | {backbone} | {values} |")
    return "\n".join(lines) + "\n"
