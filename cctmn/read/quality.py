"""Checks of a slice's size and values, before the networks see it.

A slice that cannot be scored raises SliceError with its code. A slice that can be scored but may
lie outside the model's purpose gets flags. The limits were measured; each has its evidence beside
it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cctmn.errors import SliceError
from cctmn.read.slice import Slice

AIR_HU: Final = -1024.0
# Outside of these no CT slice of a body has values (inputs.md, 901 slices of 117 files).
LOWEST_HU: Final = -4200.0
HIGHEST_HU: Final = 32000.0
_MAX_MEDIAN_HU: Final = 1000.0
_BELOW_HU: Final = -300.0  # lung, air and the darkest fat; every slice has some
_MIN_BELOW_FRACTION: Final = 0.02
_MIN_GREY_LEVELS: Final = 8
# A targeted field of view may hold no air at all; then nearly all of it is soft tissue. A slice
# without its rescale has air at 0 and tissue near 1000 instead.
_SOFT_HU: Final = (-200.0, 300.0)
_DENSE_HU: Final = 700.0
_MIN_SOFT_FRACTION: Final = 0.6
_MAX_DENSE_FRACTION: Final = 0.2
# Saturated pixels at metal: a hip in a field of 500 mm covers less.
_MAX_WILD_FRACTION: Final = 0.005
_MAX_WILD_REGIONS: Final = 32

_MIN_SIDE_PX: Final = 64  # a lung of 20 px holds no lesion
# One slice had 9 lesions at 512 px and 57 at 256: enlarging it changes what the detector sees.
_SMALL_SIDE_PX: Final = 400
_MAX_SIDE_PX: Final = 8192
_MAX_PIXELS: Final = 4096 * 4096  # CT matrices end at 2048 x 2048

_CHECK_SIDE_PX: Final = 128  # the checks look at every 4th pixel of 512
_LUNG_TO_TISSUE_HU: Final = -500.0  # half way from lung to tissue
_LUNG_TO_TISSUE_GREY: Final = 144.0  # the same in the lung window
# Lung (air that does not touch the border, opened by 3 x 3 at 128 px) as a fraction of the body.
# Measured on the corpus and 25 other slices: head 0.03, face 0.03, shoulder 0.001 to 0.018, liver
# dome 0.00 to 0.036; apex 0.107, lungs white with COVID-19 0.093, all others above 0.15.
_MIN_LUNG_FRACTION: Final = 0.05
# Median grey of a picture's lungs and tissue, measured on the same: 73 to 115, 210 to 236. A window
# of -1000..400 puts lung at 27, one of -1350..1000 tissue at 151, a soft-tissue one lung at 0.
_MIN_LUNG_GREY: Final = 45.0
_MIN_TISSUE_GREY: Final = 190.0
_MAX_BLACK_FRACTION: Final = 0.4  # 0.21 are the corners of a round field of view; soft tissue: 0.56
_MAX_BLANK_RUN: Final = 0.25  # of a side, of equal rows or columns; 0.11 at most in whole pictures
_MIN_PART: Final = 0.05  # a CT picture has both air and tissue
_MIN_SECOND_BODY: Final = 0.4  # of the first one's area; an arm beside the chest has 0.1
_MAX_ASPECT: Final = 1.7  # CT matrices are square; crops to the body reach 1.6, screens 1.78
# Measured on 24 pictures and 17 DICOM slices of chests. Correlation of the edges in one half of a
# picture with those in the other: at most 0.22; 0.39 and more where a slice stands in two windows.
_MAX_HALVES_CORRELATION: Final = 0.33
# Height of the body over its width: at most 0.87; a slice turned by 90 degrees has 1.15 and more.
_MAX_BODY_HEIGHT: Final = 1.05
# Part of the first and of the last row that lies in the body: 0. A coronal or sagittal picture goes
# on into neck and abdomen, and has air at both sides.
_MAX_BODY_EDGE: Final = 0.15
_MAX_BODY_SIDE: Final = 0.05


def check_size(rows: int, cols: int) -> None:
    """Refuse sides that cannot be scored, before anything is allocated."""
    if max(rows, cols) > _MAX_SIDE_PX or rows * cols > _MAX_PIXELS:
        raise SliceError("too_large")
    if min(rows, cols) < _MIN_SIDE_PX:
        raise SliceError("too_small")


def check_hu(hu: npt.NDArray[np.float32]) -> frozenset[str]:
    """Replace fill and saturated values in place, and return the flags of that.

    Raises SliceError for values that no CT slice of a body has: most often a wrong or missing
    rescale.
    """
    flags = set()
    if (lowest := hu.min()) < LOWEST_HU:
        fill = hu == lowest
        if _is_fill(fill, hu < LOWEST_HU):
            hu[fill] = AIR_HU
            lowest = hu.min()
    if lowest < LOWEST_HU or hu.max() > HIGHEST_HU:
        if not _is_compact((hu < LOWEST_HU) | (hu > HIGHEST_HU)):
            raise SliceError("implausible_hu")
        np.clip(hu, LOWEST_HU, HIGHEST_HU, out=hu)
        flags.add("saturated")
    sample = hu[::2, ::2]
    # A count is ten times as fast as the median, and tells it unless it is near.
    above = np.count_nonzero(sample > _MAX_MEDIAN_HU)
    if 2 * above >= sample.size - 1 and np.median(sample) > _MAX_MEDIAN_HU:
        raise SliceError("implausible_hu")
    if np.count_nonzero(sample < _BELOW_HU) < _MIN_BELOW_FRACTION * sample.size:
        soft = np.mean((sample >= _SOFT_HU[0]) & (sample <= _SOFT_HU[1]))
        dense = np.mean(sample > _DENSE_HU)
        is_body = soft >= _MIN_SOFT_FRACTION and dense <= _MAX_DENSE_FRACTION
        raise SliceError("no_air" if is_body else "implausible_hu")
    return frozenset(flags)


def _is_fill(fill: npt.NDArray[np.bool_], low: npt.NDArray[np.bool_]) -> bool:
    """Return whether one value far below air fills the region outside the scan circle.

    Scanners write -8192, -32768 or 10 x 0 - 10240 there, and often do not declare it as padding.
    """
    if np.count_nonzero(low & ~fill) > _MAX_WILD_FRACTION * low.size:
        return False
    inner = _inner(fill)
    return bool(np.count_nonzero(inner) <= _MAX_WILD_FRACTION * np.count_nonzero(fill))


def _is_compact(wild: npt.NDArray[np.bool_]) -> bool:
    """Return whether wild values are few and lie together, as at metal; damage scatters them."""
    if np.count_nonzero(wild) > _MAX_WILD_FRACTION * wild.size:
        return False
    _, count = ndimage.label(wild, np.ones((3, 3)))
    return int(count) <= _MAX_WILD_REGIONS


def check_content(slice_: Slice, grey: npt.NDArray[np.uint8]) -> set[str]:
    """Return the flags that follow from the values; refuse what is not a picture at all."""
    # A part of the pixels has enough levels in every picture but such a one.
    if _grey_levels(grey[::8, ::8]) < _MIN_GREY_LEVELS > _grey_levels(grey):
        raise SliceError("constant_image")
    flags = set()
    short, long = min(grey.shape), max(grey.shape)
    if short < _SMALL_SIDE_PX:
        flags.add("small")
    step = max(1, short // _CHECK_SIDE_PX)
    grey = grey[::step, ::step]
    if max(_longest_run(_is_blank(grey)), _longest_run(_is_blank(grey.T))) > _MAX_BLANK_RUN:
        flags.add("partly_blank")
    if slice_.unit == "hu":
        air = slice_.pixels[::step, ::step] < _LUNG_TO_TISSUE_HU
    else:
        air = grey < _LUNG_TO_TISSUE_GREY
        flags |= _check_window(grey, air)
    inner = _inner(air)
    has_lung = _lung_fraction(air, inner) >= _MIN_LUNG_FRACTION
    if not has_lung:
        flags.add("no_lung")
    if slice_.unit != "hu":
        bodies, count = ndimage.label(~air | inner)
        sizes = np.bincount(bodies.ravel(), minlength=count + 1)[1:]
        if (
            _are_several(sizes, area=air.size)
            or _shows_twice(grey)
            or (has_lung and not _is_axial(bodies == 1 + np.argmax(sizes)))
        ):
            flags.add("not_ct_like")
    if long > _MAX_ASPECT * short or not _MIN_PART < air.mean() < 1 - _MIN_PART:
        flags.add("not_ct_like")
    return flags


def _grey_levels(grey: npt.NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(np.bincount(grey.ravel(), minlength=256)))


def _are_several(sizes: npt.NDArray[np.int_], *, area: int) -> bool:
    """Return whether two bodies of similar size lie side by side, as on a film sheet."""
    if len(sizes) <= 1:
        return False
    second, first = np.sort(sizes)[-2:]
    return bool(second > _MIN_SECOND_BODY * first and second > _MIN_PART * area)


def _shows_twice(grey: npt.NDArray[np.uint8]) -> bool:
    """Return whether both halves show the same edges, as where a slice stands in two windows."""
    edges = ndimage.gaussian_gradient_magnitude(grey.astype(np.float32), 1.0)
    rows, cols = edges.shape[0] // 2, edges.shape[1] // 2
    halves = ((edges[:, :cols], edges[:, -cols:]), (edges[:rows], edges[-rows:]))
    return any(
        np.std(one) > 0
        and np.std(other) > 0
        and np.corrcoef(one.ravel(), other.ravel())[0, 1] > _MAX_HALVES_CORRELATION
        for one, other in halves
    )


def _is_axial(body: npt.NDArray[np.bool_]) -> bool:
    """Return whether the largest body lies as in an axial slice: wider than high, air above it."""
    side = max(body[:, 0].mean(), body[:, -1].mean())
    if side > _MAX_BODY_SIDE:  # cut at the sides, so its width is not known
        return True
    rows, cols = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(cols) + 1
    goes_on = min(body[0].mean(), body[-1].mean()) > _MAX_BODY_EDGE
    return bool(not goes_on and height <= _MAX_BODY_HEIGHT * width)


def _check_window(grey: npt.NDArray[np.uint8], air: npt.NDArray[np.bool_]) -> set[str]:
    """Return what is wrong with the grey scale of a picture that came windowed."""
    if _has_lung(grey, air):
        return set() if np.median(grey[~air]) >= _MIN_TISSUE_GREY else {"window"}
    negative = 255 - grey
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    if np.median(border) > _LUNG_TO_TISSUE_GREY and _has_lung(
        negative, negative < _LUNG_TO_TISSUE_GREY
    ):
        return {"inverted"}
    black_lung = _lung_fraction(air, _inner(air)) >= _MIN_LUNG_FRACTION
    return {"window"} if black_lung or np.mean(grey == 0) > _MAX_BLACK_FRACTION else set()


def _has_lung(grey: npt.NDArray[np.uint8], air: npt.NDArray[np.bool_]) -> bool:
    inner = _inner(air)
    if _lung_fraction(air, inner) < _MIN_LUNG_FRACTION:
        return False
    return bool(np.median(grey[inner]) >= _MIN_LUNG_GREY)


def _inner(air: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the air that is not connected with the border: lungs, airways, bowel."""
    labels, count = ndimage.label(air)
    enclosed = np.ones(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        enclosed[edge] = False
    enclosed[0] = False
    return np.asarray(enclosed[labels])


def _lung_fraction(air: npt.NDArray[np.bool_], inner: npt.NDArray[np.bool_]) -> float:
    body = int(np.count_nonzero(~air | inner))
    # Opening drops what lungs are not: sinuses, airways, noise.
    lung = int(np.count_nonzero(_opened(inner)))
    return lung / max(1, body)


def _opened(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return scipy's binary_opening by 3 x 3, which takes ten times as long."""
    for join in (np.logical_and, np.logical_or):
        wide = np.pad(mask, 1)
        tall = join(join(wide[:-2], wide[1:-1]), wide[2:])
        mask = join(join(tall[:, :-2], tall[:, 1:-1]), tall[:, 2:])
    return mask


def _is_blank(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which rows hold one value only."""
    return np.asarray((grey == grey[:, :1]).all(axis=1))


def _longest_run(flags: npt.NDArray[np.bool_]) -> float:
    """Return the longest run of True as a fraction of the length."""
    ends = np.flatnonzero(~np.concatenate([[False], flags, [False]]))
    return (int(np.diff(ends).max()) - 1) / len(flags)
