"""Positions in an image: how the stored image was turned, and the way back for points and boxes.

A point is (x, y) in px, x along the columns. Positions are edges, not pixel centres: x runs from 0
to the width of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Turn:
    """The turn from the stored image to the usual display: transposed first, then flipped."""

    transpose: bool = False
    # the first row becomes the last
    flip_rows: bool = False
    flip_cols: bool = False

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the turned image."""
        turned = stored.T if self.transpose else stored
        if self.flip_rows:
            turned = turned[::-1]
        if self.flip_cols:
            turned = turned[:, ::-1]
        return np.ascontiguousarray(turned)

    def undo(self, turned: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the stored image that was turned."""
        stored = turned[:, ::-1] if self.flip_cols else turned
        stored = stored[::-1] if self.flip_rows else stored
        return np.ascontiguousarray(stored.T if self.transpose else stored)


@dataclass(frozen=True)
class Affine:
    """An affine map of points: x' = xx x + xy y + x0 and y' = yx x + yy y + y0."""

    xx: float = 1.0
    xy: float = 0.0
    x0: float = 0.0
    yx: float = 0.0
    yy: float = 1.0
    y0: float = 0.0

    @classmethod
    def from_turn_and_scale(
        cls, turn: Turn, *, scale_row: float, scale_col: float, rows: int, cols: int
    ) -> Affine:
        """Return the map from px of the model's input to px of the stored image.

        The stored image of `rows` x `cols` px was turned by `turn` and then resized; the scales are
        px of the model's input per px of the turned image.
        """
        height, width = (cols, rows) if turn.transpose else (rows, cols)
        # 1. From the model's input to the turned image, and 2. back through the flips.
        along_x = cls(
            xx=(-1 if turn.flip_cols else 1) / scale_col,
            x0=width if turn.flip_cols else 0,
            yy=(-1 if turn.flip_rows else 1) / scale_row,
            y0=height if turn.flip_rows else 0,
        )
        if not turn.transpose:
            return along_x
        # 3. Back through the transposition, which swaps x' and y'.
        return cls(xx=0, xy=along_x.yy, x0=along_x.y0, yx=along_x.xx, yy=0, y0=along_x.x0)

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Affine:
        """Return the map from its 2 x 3 matrix, row by row."""
        return cls(*values)

    def to_list(self) -> list[float]:
        """Return the 2 x 3 matrix, row by row."""
        return list(astuple(self))

    @property
    def area_factor(self) -> float:
        """Area of the mapped unit square: the absolute determinant."""
        return abs(self.xx * self.yy - self.xy * self.yx)

    def inverse(self) -> Affine:
        """Return the map back."""
        (xx, xy), (yx, yy) = np.linalg.inv([[self.xx, self.xy], [self.yx, self.yy]]).tolist()
        back = Affine(xx=xx, xy=xy, yx=yx, yy=yy)
        x0, y0 = back.points(self.x0, self.y0)
        return Affine(xx=xx, xy=xy, x0=-x0, yx=yx, yy=yy, y0=-y0)

    def points(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return x' and y' of points, numbers or arrays of any one shape."""
        return self.xx * x + self.xy * y + self.x0, self.yx * x + self.yy * y + self.y0

    def boxes(self, boxes_N4: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Return the mapped boxes x0 y0 x1 y1, again with x0 <= x1 and y0 <= y1."""
        corners_N22 = np.asarray(boxes_N4, np.float64).reshape(-1, 2, 2)
        mapped_N22 = np.stack(self.points(corners_N22[..., 0], corners_N22[..., 1]), axis=-1)
        return np.concatenate([mapped_N22.min(axis=1), mapped_N22.max(axis=1)], axis=1)
