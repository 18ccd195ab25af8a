"""The places where the host may wait for a GPU, so that a check can find all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def host_waits() -> Iterator[None]:
    """Allow the host to wait for the GPU.

    Everywhere else, `torch.cuda.set_sync_debug_mode("error")` makes an error of it.
    """
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
