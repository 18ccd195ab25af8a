"""The 3 x 3 convolution by Winograd's minimal filtering, F(4 x 4, 3 x 3).

It computes 4 x 4 outputs from 6 x 6 inputs with 36 multiplications per pair of channels instead
of 144. Between two transforms of additions it is 36 matrix products (Lavin and Gray, 2016,
arXiv:1509.09308). With the points 0, 1, -1, 1/2, -2 and infinity, the rounding error is two to
three times that of oneDNN's direct convolution in channels-last memory.

winograd.c has the transforms as compiled code. Where it was not built, torch's additions take their
place.

Shape suffixes: B slices, H W px, C input and O output channels, P = 36 points, T tiles or rows of
tiles, X columns of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cctmn.model import onednn
from cctmn.model import winograd_native as native
from cctmn.model.shapes import shapes_alone

TILE: Final = 4  # outputs of a tile, per side
POINTS: Final = TILE + 2  # inputs of a tile, per side
# So that the values of these tiles stay in the cache of a core; torch's additions have a cost each.
NATIVE_TILES_AT_ONCE: Final = 128
TILES_AT_ONCE: Final = 256

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
    """A `Conv2d` of 3 x 3, stride 1 and padding 1, for inference on the CPU.

    It computes in float32, and takes and returns maps of float32 or bfloat16. The weights are those
    of `conv` when this is built. The values of a map do not depend on the others of its batch.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert fits(conv), conv
        transform = torch.tensor(_WEIGHTS, dtype=torch.float64)
        weight = conv.weight.detach().double()
        matrices_POC = torch.einsum("ai,bj,ocij->aboc", transform, transform, weight).flatten(0, 1)
        channels = (conv.in_channels, conv.out_channels)
        is_native = (
            native.usable() and onednn.usable() and not any(c % native.LANES for c in channels)
        )
        products = GroupedProducts if is_native else BatchedProducts
        self._products = products(matrices_POC.float())
        self._num_out = conv.out_channels
        self._bias = (
            torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        )
        self._convolve = self._by_library if is_native else self._by_torch

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return B x O x H x W, in channels-last memory."""
        return self._convolve(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _by_library(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC.contiguous()
        batch, height, width, channels = x_BHWC.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        y_BHWO = x_BHWC.new_empty(batch, height, width, self._num_out)
        # A piece is some rows of tiles of one map; several small maps share one product.
        step = min(rows, max(1, NATIVE_TILES_AT_ONCE // columns))
        pieces = [
            (x_HWC, y_HWO, first, columns * min(step, rows - first))
            for x_HWC, y_HWO in zip(x_BHWC, y_BHWO, strict=True)
            for first in range(0, rows, step)
        ]
        together = max(1, NATIVE_TILES_AT_ONCE // (step * columns))
        for start in range(0, len(pieces), together):
            group = pieces[start : start + together]
            tiles = [piece[3] for piece in group]
            inputs_TPC = torch.empty(sum(tiles), POINTS**2, channels)
            for (x_HWC, _, first, _), out_TPC in zip(
                group, torch.split(inputs_TPC, tiles), strict=True
            ):
                native.inputs(x_HWC, out_TPC, first=first, columns=columns)
            products = torch.split(self._products(inputs_TPC), tiles)
            for (_, y_HWO, first, _), products_TPO in zip(group, products, strict=True):
                native.outputs(
                    products_TPO, self._bias, first=first, columns=columns, out_HWC=y_HWO
                )
        return y_BHWO

    def _by_torch(self, x_BHWC: Tensor) -> Tensor:
        if not len(x_BHWC):  # masks of a slice without lesions
            return x_BHWC.new_empty(*x_BHWC.shape[:3], self._num_out)
        one_by_one = [self._one_by_torch(x_HWC) for x_HWC in x_BHWC]
        return one_by_one[0][None] if len(one_by_one) == 1 else torch.stack(one_by_one)

    def _one_by_torch(self, x_HWC: Tensor) -> Tensor:
        height, width, channels = x_HWC.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        right, below = TILE * columns - width + 1, TILE * rows - height + 1
        padded = F.pad(x_HWC.float(), (0, 0, 1, right, 1, below))
        y_T4X4O = padded.new_empty(rows, TILE, columns, TILE, self._num_out)
        step = max(1, TILES_AT_ONCE // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            part = padded[TILE * first : TILE * (first + count) + 2]
            # 1. Inputs: rows, then columns.
            by_row = part.new_empty(POINTS, count, padded.shape[1], channels)
            _combine(_INPUT, _every_fourth(part, dim=0, count=count), out=by_row.unbind())
            inputs = part.new_empty(POINTS, POINTS, count, columns, channels)
            _combine(_INPUT, _every_fourth(by_row, dim=2, count=columns), out=inputs.unbind(1))
            # 2. One matrix product per point.
            products = self._products(inputs.reshape(POINTS**2, -1, channels))
            products = products.reshape(POINTS, POINTS, count, columns, self._num_out)
            # 3. Outputs: rows, then columns.
            of_rows = part.new_empty(TILE, POINTS, count, columns, self._num_out)
            _combine(_OUTPUT, products.unbind(), out=of_rows.unbind())
            out = y_T4X4O[first : first + count]
            _combine(_OUTPUT, of_rows.unbind(1), out=out.permute(3, 1, 0, 2, 4).unbind())
            out.add_(self._bias)
        y_HWO = y_T4X4O.reshape(TILE * rows, TILE * columns, self._num_out)[:height, :width]
        return y_HWO.to(x_HWC.dtype)


class BatchedProducts(nn.Module):
    """One matrix product per point, as a batch of matrix products."""

    def __init__(self, matrices_POC: Tensor) -> None:
        super().__init__()
        self._matrices_PCO = matrices_POC.transpose(1, 2).contiguous()

    def forward(self, x_PTC: Tensor) -> Tensor:
        """Return P x T x O."""
        return torch.bmm(x_PTC, self._matrices_PCO)


class GroupedProducts(nn.Module):
    """One matrix product per point, as oneDNN's convolution of 1 x 1 in groups, which is faster."""

    def __init__(self, matrices_POC: Tensor) -> None:
        super().__init__()
        points, self._num_out, channels = matrices_POC.shape
        total = points * self._num_out
        with shapes_alone():
            conv = nn.Conv2d(points * channels, total, 1, groups=points, bias=False)
        weight = matrices_POC.reshape(total, channels, 1, 1)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        self._conv = onednn.OneDnnConv(conv)

    def forward(self, x_TPC: Tensor) -> Tensor:
        """Return T x P x O."""
        as_map = x_TPC.flatten(1).t()[None, :, :, None]
        return self._conv(as_map)[0, :, :, 0].t().unflatten(1, (-1, self._num_out))


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
