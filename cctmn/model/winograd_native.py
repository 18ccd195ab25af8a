"""The compiled transforms of winograd.c, which hatch_build.py builds where a C compiler is present.

Shape suffixes: T tiles, P = 36 points, C channels, H W px.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

LIBRARY: Final = Path(__file__).with_name("_winograd.so")
LANES: Final = 16  # channels must be a multiple of it
_MAP_TYPES: Final = (torch.float32, torch.bfloat16)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.cctmn_winograd_inputs.argtypes = [pointer, *[number] * 6, pointer, number]
    library.cctmn_winograd_outputs.argtypes = [pointer, pointer, *[number] * 6, pointer, number]
    for function in (library.cctmn_winograd_inputs, library.cctmn_winograd_outputs):
        function.restype = None
    return library


def usable() -> bool:
    """Whether the library was built, and can be loaded on this machine."""
    return _library() is not None


def inputs(x_HWC: Tensor, out_TPC: Tensor, *, first: int, columns: int) -> None:
    """Write the transformed inputs of the tiles from tile row `first` on, `columns` in a row."""
    _check(x_HWC, out_TPC)
    library = _library()
    assert library is not None
    library.cctmn_winograd_inputs(
        x_HWC.data_ptr(),
        *x_HWC.shape,
        first,
        len(out_TPC) // columns,
        columns,
        out_TPC.data_ptr(),
        x_HWC.dtype == torch.bfloat16,
    )


def outputs(
    products_TPC: Tensor, bias_C: Tensor, *, first: int, columns: int, out_HWC: Tensor
) -> None:
    """Write the outputs of these tiles, with a bias, to a map."""
    _check(out_HWC, products_TPC)
    assert bias_C.is_contiguous(), bias_C.stride()
    library = _library()
    assert library is not None
    library.cctmn_winograd_outputs(
        products_TPC.data_ptr(),
        bias_C.data_ptr(),
        *out_HWC.shape,
        first,
        len(products_TPC) // columns,
        columns,
        out_HWC.data_ptr(),
        out_HWC.dtype == torch.bfloat16,
    )


def _check(map_HWC: Tensor, tiles_TPC: Tensor) -> None:
    """C reads the memory of tensors without asking; so they must be what it takes them for."""
    assert map_HWC.dtype in _MAP_TYPES, map_HWC.dtype
    assert tiles_TPC.dtype == torch.float32, tiles_TPC.dtype
    assert map_HWC.is_contiguous(), map_HWC.stride()
    assert tiles_TPC.is_contiguous(), tiles_TPC.stride()
    channels = map_HWC.shape[-1]
    assert channels % LANES == 0, channels
    assert tiles_TPC.shape[1:] == (36, channels), tiles_TPC.shape
