"""The evidence of disease and the area of lesions along the body, as two small drawings.

The drawings hold no text and are stretched to the width of the page; the page writes the scales
beside them. A whole scan of 900 slices takes about 10 KB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from cctmn.report.study_slices import StudySlice

# Size of the drawings in their own units; the page stretches them.
WIDTH: Final = 1000
HEIGHT: Final = 100
# Beyond this distance, or three usual distances, two slices are not joined by a line.
GAP_MM: Final = 12.0


@dataclass(frozen=True)
class Profile:
    """Paths of the drawings, which are WIDTH by HEIGHT, and the ends of their scales."""

    low_mm: float
    high_mm: float
    line: str  # evidence of the used slices
    deciding: str  # a line up from the axis at each deciding slice
    abstained: str  # a mark below the axis at each abstained slice
    area: str  # a bar per slice; "" without areas
    largest_mm2: float
    num_used: int
    num_unknown: int  # slices of the series without a position


def draw(slices: Sequence[StudySlice], *, deciding: Sequence[str]) -> Profile | None:
    """Draw the scored slices of one series; None if fewer than two have a position."""
    scored = [one for one in slices if not one.code]
    placed = sorted((one for one in scored if math.isfinite(one.z_mm)), key=lambda one: one.z_mm)
    if len(placed) < 2 or placed[0].z_mm == placed[-1].z_mm:
        return None
    low, high = placed[0].z_mm, placed[-1].z_mm

    def x(one: StudySlice) -> str:
        return _short(WIDTH * (one.z_mm - low) / (high - low))

    used = [one for one in placed if not one.abstained and math.isfinite(one.p_disease)]
    areas = [one for one in placed if not one.abstained and math.isfinite(one.area_mm2)]
    largest = max((one.area_mm2 for one in areas), default=0.0)
    chosen = set(deciding)
    return Profile(
        low_mm=low,
        high_mm=high,
        line=_line(used, [x(one) for one in used]),
        deciding="".join(
            f"M{x(one)} {HEIGHT}V{_y(one.p_disease)}" for one in used if one.slice_id in chosen
        ),
        abstained="".join(f"M{x(one)} {HEIGHT - 4}v4" for one in placed if one.abstained),
        area="".join(
            f"M{x(one)} {HEIGHT}V{_y(one.area_mm2 / largest)}" for one in areas if one.area_mm2
        ),
        largest_mm2=largest,
        num_used=len(used),
        num_unknown=len(scored) - len(placed),
    )


def _line(used: Sequence[StudySlice], x: Sequence[str]) -> str:
    distances = [b.z_mm - a.z_mm for a, b in pairwise(used)]
    usual = median([distance for distance in distances if distance > 0] or [0.0])
    gap = max(GAP_MM, 3 * usual)
    parts = []
    for index, one in enumerate(used):
        # A slice between two gaps is a line without length, which its round ends make a dot.
        moved = index == 0 or distances[index - 1] > gap
        parts.append(
            f"{'M' if moved else 'L'}{x[index]} {_y(one.p_disease)}{'h0' if moved else ''}"
        )
    return "".join(parts)


def _y(fraction: float) -> str:
    return _short(HEIGHT * (1 - fraction))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
