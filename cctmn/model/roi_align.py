"""RoIAlign over all pyramid levels, as a weighted gather where that is faster.

RoIAlign reads four neighbours at each of its sampling points. On the CPU and in float32 this is one
sum of weighted rows of a channels-last feature map. torch has a fast kernel for that
(`embedding_bag`); torchvision's own reads every channel of a box by itself. The gradient of a cell
is such a sum too: of the gradients of all outputs that read the cell. Elsewhere torchvision's
kernel is used.

Shape suffixes: P boxes, C channels, X cells of all feature maps, S cells of a side of the output,
K sampling points of a cell's side, 4 box (x0 y0 x1 y1), 2 height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from cctmn.model.card import Arch
from cctmn.model.constants import ROI_SAMPLING
from cctmn.model.waits import host_waits


class RoiAlign(MultiScaleRoIAlign):
    """torchvision's pooling layer with the levels and scales of an `Arch`, to S x S cells.

    torchvision would infer the scales from the first slice and keep them for all others.
    """

    def __init__(self, arch: Arch, cells: int) -> None:
        levels = [str(i) for i in range(len(arch.layers))]
        super().__init__(levels, output_size=cells, sampling_ratio=ROI_SAMPLING)
        self.scales = [1 / stride for stride in arch.strides_px]
        exponents = [stride.bit_length() - 1 for stride in arch.strides_px]
        self.map_levels = initLevelMapper(exponents[0], exponents[-1])

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return P x C x S x S for the boxes of all slices, P x 4 each.

        Where the gather is used, the memory layout is channels last.
        """
        maps = [x[name] for name in self.featmap_names]
        is_gathered = maps[0].device.type == "cpu" and maps[0].dtype == torch.float32
        if not is_gathered:
            if not torch.is_grad_enabled() and len({len(of_slice) for of_slice in boxes}) == 1:
                return self._of_equal_counts(maps, torch.stack(boxes))
            by_torchvision: Tensor = super().forward(x, boxes, image_shapes)
            return by_torchvision
        every = torch.cat(boxes)
        level_P = self.map_levels(boxes) if len(maps) > 1 else torch.zeros(len(every)).long()
        slice_P = torch.repeat_interleave(torch.tensor([len(of_slice) for of_slice in boxes]))
        # All feature maps below each other, as one table of cells.
        rows = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in maps]
        sizes = torch.tensor([feature.shape[-2:] for feature in maps])
        starts = torch.tensor([0, *(len(of_level) for of_level in rows)]).cumsum(0)
        size_P2 = sizes[level_P]
        return gather(
            rows[0] if len(rows) == 1 else torch.cat(rows),
            every * torch.tensor(self.scales)[level_P, None],
            first_P=starts[level_P] + slice_P * size_P2.prod(1),
            size_P2=size_P2,
            cells=self.output_size[0],
        )

    def _of_equal_counts(self, maps: list[Tensor], boxes_BP4: Tensor) -> Tensor:
        """Pool as many boxes of each slice by torchvision's kernel.

        With one pyramid level the host does not wait for the device, with several it does so once
        per level. torchvision's own layer runs several operations per slice before the kernel.
        """
        batch, count, _ = boxes_BP4.shape
        slice_P1 = torch.arange(batch, dtype=boxes_BP4.dtype, device=boxes_BP4.device)
        slice_P1 = slice_P1.repeat_interleave(count)[:, None]
        rois_P5 = torch.cat([slice_P1, boxes_BP4.flatten(0, 1)], dim=1)
        if len(maps) == 1:
            return self._kernel(maps[0], rois_P5, level=0)
        level_P = self.map_levels([rois_P5[:, 1:]])
        cells = self.output_size[0]
        pooled = maps[0].new_empty(len(rois_P5), maps[0].shape[1], cells, cells)
        for level, feature in enumerate(maps):
            with host_waits():
                rows = torch.where(level_P == level)[0]
            pooled[rows] = self._kernel(feature, rois_P5[rows], level=level)
        return pooled

    def _kernel(self, feature: Tensor, rois_P5: Tensor, *, level: int) -> Tensor:
        pooled: Tensor = roi_align(
            feature,
            rois_P5,
            output_size=self.output_size,
            spatial_scale=self.scales[level],
            sampling_ratio=self.sampling_ratio,
        )
        return pooled


def gather(
    rows_XC: Tensor, boxes_P4: Tensor, *, first_P: Tensor, size_P2: Tensor, cells: int
) -> Tensor:
    """Return the pooled features of boxes, P x C x S x S, from a table of the cells of all maps.

    The map of a box begins at row `first_P` and has the height and width `size_P2`; its box is in
    cells of that map. The steps of the arithmetic are torchvision's, so that both round alike.
    """
    x0, y0, x1, y1 = boxes_P4.unbind(1)
    height_P, width_P = size_P2.unbind(1)
    columns, of_columns = _axis(x0, x1, length_P=width_P, cells=cells)
    lines, of_lines = _axis(y0, y1, length_P=height_P, cells=cells)
    starts = first_P[:, None, None] + lines * width_P[:, None, None]
    index = starts[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = of_lines[:, :, None, :, None] * of_columns[:, None, :, None, :]
    entries = index.shape[-1] ** 2
    pooled: Tensor = _WeightedSums.apply(
        rows_XC, index.reshape(-1, entries), weights.reshape(-1, entries) / ROI_SAMPLING**2
    )
    return pooled.reshape(len(boxes_P4), cells, cells, rows_XC.shape[1]).permute(0, 3, 1, 2)


class _WeightedSums(torch.autograd.Function):
    """Each output is a weighted sum of rows, and gradients flow to the rows alone.

    Boxes carry no gradient, as in torchvision. The rows are X x C; the indices of the rows of an
    output and their weights are outputs x entries.
    """

    @staticmethod
    def forward(ctx: Any, rows_XC: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return outputs x C."""
        ctx.save_for_backward(index, weights)
        ctx.num_rows = len(rows_XC)
        return F.embedding_bag(index, rows_XC, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the rows. The order of its sums is fixed, so it is repeatable."""
        index, weights = ctx.saved_tensors
        of_row, order = index.flatten().sort(stable=True)
        first = torch.searchsorted(of_row, torch.arange(ctx.num_rows))
        rows_XC = F.embedding_bag(
            order.div(index.shape[1], rounding_mode="floor"),
            gradient.contiguous(),
            first,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        return rows_XC, None, None


def _axis(start_P: Tensor, end_P: Tensor, *, length_P: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the neighbours of the sampling points along one axis and their weights.

    Both are P x S x 2K. A point outside the map by more than one cell has the weight 0.
    """
    last_PSK = (length_P - 1)[:, None, None]
    size_P1 = ((end_P - start_P).clamp(min=1) / cells)[:, None, None]
    bin_S1 = torch.arange(cells, dtype=start_P.dtype)[:, None]
    offset_K = torch.arange(ROI_SAMPLING, dtype=start_P.dtype) + 0.5
    at_PSK = start_P[:, None, None] + bin_S1 * size_P1 + offset_K * size_P1 / ROI_SAMPLING
    outside_PSK = (at_PSK < -1) | (at_PSK > last_PSK + 1)
    at_PSK = at_PSK.clamp(min=0)
    low_PSK = at_PSK.floor().long()
    above_PSK = torch.where(low_PSK >= last_PSK, 0.0, at_PSK - low_PSK)
    neighbours = torch.stack([low_PSK, low_PSK + 1], dim=-1).minimum(last_PSK[..., None])
    weights = torch.stack([1 - above_PSK, above_PSK], dim=-1)
    return neighbours.flatten(2), weights.masked_fill(outside_PSK[..., None], 0.0).flatten(2)
