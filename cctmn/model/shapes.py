"""Layers without values, which get the weights of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_INITIALISERS = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Let layers that are made here have shapes and no memory.

    torch would initialise even these, by Python code that imports its compiler.
    """
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function in _INITIALISERS or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else options["tensor"]
        return function(*args, **options)
