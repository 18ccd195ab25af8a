"""The 3 x 3 convolution by Winograd's minimal filtering, F(4 x 4, 3 x 3).

It computes 4 x 4 outputs from 6 x 6 inputs with 36 multiplications per pair of channels instead
of 144. Between two transforms of additions it is 36 matrix products (Lavin and Gray, 2016,
arXiv:1509.09308). With the points 0, 1, -1, 1/2, -2 and infinity, the rounding error is twice that
of oneDNN's direct convolution in channels-last memory.

Shape suffixes: B slices, H W px, C input and O output channels, T rows and X columns of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE: Final = 4  # outputs of a tile, per side
POINTS: Final = TILE + 2  # inputs of a tile, per side
TILES_AT_ONCE: Final = 256  # so that their values stay in the cache of a core

# The transforms of a line of outputs, inputs and weights, one row per value that they give.
_OUTPUT: Final = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 0.5, -2.0, 0.0),
    (0.0, 1.0, 1.0, 0.25, 4.0, 0.0),
    (0.0, 1.0, -1.0, 0.125, -8.0, 1.0),
)
_INPUT: Final = (
    (2.0, -3.0, -4.0, 3.0, 2.0, 0.0),
    (0.0, -2.0, 1.0, 5.0, 2.0, 0.0),
    (0.0, -2.0, 5.0, -1.0, -2.0, 0.0),
    (0.0, 32.0, 16.0, -32.0, -16.0, 0.0),
    (0.0, 1.0, -2.0, -1.0, 2.0, 0.0),
    (0.0, 2.0, -3.0, -4.0, 3.0, 2.0),
)
_WEIGHTS: Final = (
    (1 / 2, 0.0, 0.0),
    (1 / 6, 1 / 6, 1 / 6),
    (1 / 6, -1 / 6, 1 / 6),
    (1 / 15, 1 / 30, 1 / 60),
    (1 / 30, -1 / 15, 2 / 15),
    (0.0, 0.0, 1 / 2),
)


class WinogradConv(nn.Module):
    """A `Conv2d` of 3 x 3, stride 1 and padding 1, for inference in float32 on the CPU.

    The weights are those of `conv` when this is built. Slices of a batch run one by one, so that
    their values do not depend on each other.
    """

    matrices: Tensor  # 36 x C x O
    bias: Tensor | None  # O

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert fits(conv), conv
        transform = torch.tensor(_WEIGHTS, dtype=torch.float64)
        weight = conv.weight.detach().double()
        matrices = torch.einsum("ai,bj,ocij->abco", transform, transform, weight).flatten(0, 1)
        self.register_buffer("matrices", matrices.float().contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B x O x H x W, in channels-last memory."""
        one_by_one = [self._convolve(x_HWC) for x_HWC in x_BCHW.permute(0, 2, 3, 1)]
        y_BHWO = one_by_one[0][None] if len(one_by_one) == 1 else torch.stack(one_by_one)
        return y_BHWO.permute(0, 3, 1, 2)

    def _convolve(self, x_HWC: Tensor) -> Tensor:
        height, width, channels = x_HWC.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        right, below = TILE * columns - width + 1, TILE * rows - height + 1
        padded = F.pad(x_HWC, (0, 0, 1, right, 1, below))
        num_out = self.matrices.shape[-1]
        y_T4X4O = x_HWC.new_empty(rows, TILE, columns, TILE, num_out)
        step = max(1, TILES_AT_ONCE // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            part = padded[TILE * first : TILE * (first + count) + 2]
            # 1. Inputs: rows, then columns.
            by_row = x_HWC.new_empty(POINTS, count, padded.shape[1], channels)
            _combine(_INPUT, _every_fourth(part, dim=0, count=count), out=by_row.unbind())
            inputs = x_HWC.new_empty(POINTS, POINTS, count, columns, channels)
            _combine(_INPUT, _every_fourth(by_row, dim=2, count=columns), out=inputs.unbind(1))
            # 2. One matrix product per point.
            products = torch.bmm(inputs.reshape(POINTS**2, -1, channels), self.matrices)
            products = products.reshape(POINTS, POINTS, count, columns, num_out)
            # 3. Outputs: rows, then columns.
            of_rows = x_HWC.new_empty(TILE, POINTS, count, columns, num_out)
            _combine(_OUTPUT, products.unbind(), out=of_rows.unbind())
            out = y_T4X4O[first : first + count]
            _combine(_OUTPUT, of_rows.unbind(1), out=out.permute(3, 1, 0, 2, 4).unbind())
            if self.bias is not None:
                out.add_(self.bias)
        return y_T4X4O.reshape(TILE * rows, TILE * columns, num_out)[:height, :width]


def fits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that this computes: 3 x 3 with stride 1."""
    kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _every_fourth(x: Tensor, *, dim: int, count: int) -> list[Tensor]:
    """Return the first to sixth lines of each of `count` tiles along `dim`, as views."""
    length = TILE * (count - 1) + 1
    starts = range(POINTS)
    index: list[slice] = [slice(None)] * dim
    return [x[(*index, slice(start, start + length, TILE))] for start in starts]


def _combine(
    factors: Sequence[Sequence[float]], values: Sequence[Tensor], *, out: Sequence[Tensor]
) -> None:
    """Write to each tensor of `out` the sum of the values, weighted by one row of the factors."""
    for row, total in zip(factors, out, strict=True):
        terms = [(factor, value) for factor, value in zip(row, values, strict=True) if factor]
        terms.sort(key=lambda term: term[0] != 1)  # a first term of factor 1 saves a product
        (factor, value), (second, other), *rest = terms
        torch.add(value if factor == 1 else value * factor, other, alpha=second, out=total)
        for factor, value in rest:
            total.add_(value, alpha=factor)
