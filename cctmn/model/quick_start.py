"""Starts a process that runs a network in less time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

_COMPILER: Final = "torch._dynamo"


def import_torchvision() -> None:
    """Import torchvision without torch's compiler, which takes as long to import as torch itself.

    torchvision asks the compiler a question when RoIAlign runs on a device without a kernel for it.
    Until then a stand-in takes its place, and the compiler is imported when it is asked.
    """
    if _COMPILER not in sys.modules and "torchvision" not in sys.modules:
        importlib.import_module("torch")
        stand_ins = {name: _Later(name) for name in (_COMPILER, f"{_COMPILER}.utils")}
        sys.modules.update(stand_ins)
        try:
            importlib.import_module("torchvision")
        finally:
            for name in stand_ins:
                del sys.modules[name]


class _Later(ModuleType):
    """A module whose functions import the real one when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: getattr(importlib.import_module(self.__name__), name)(
            *args, **options
        )
