"""A pretended GPU: tensors whose device is "cuda", which live and are computed on the CPU.

It counts what costs time on a real one. A kernel is every operation that is neither a view nor a
mere allocation; what several of torch's own kernels do for one operation counts once. The host
waits where it reads a value or a size from the device. An operation on tensors of both devices
fails as on a real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# They reserve memory, or ask for a shape.
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "is_same_size"}
FREE |= {"detach", "lift_fresh", "_unsafe_view", "_reshape_alias"}
# The host needs a value or the size of the result.
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "nms",
    "equal",
}


class OnGpu(Tensor):
    """A tensor of the CPU that says that it is on a GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{operation} ran outside of the pretended GPU")


class PretendGpu(TorchDispatchMode):
    """Runs operations on `OnGpu` tensors, and counts them while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.forbidden_waits: Counter[str] = Counter()  # outside of `host_waits`
        self.uploads = 0
        self.downloads = 0
        self._may_wait = 0

    @contextmanager
    def entered(self) -> Iterator[PretendGpu]:
        """Pretend and count, although torch looks for a driver in some places."""
        torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does; nothing where a GPU is
        with mock.patch.object(torch.cuda, "_lazy_init", return_value=None), self:
            yield self

    def reset(self) -> None:
        """Begin to count anew."""
        for counter in (self.kernels, self.waits, self.forbidden_waits):
            counter.clear()
        self.uploads = self.downloads = 0

    @contextmanager
    def host_waits(self) -> Iterator[None]:
        """Take the place of `cctmn.model.waits.host_waits`."""
        self._may_wait += 1
        try:
            yield
        finally:
            self._may_wait -= 1

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        every = tree_flatten((args, kwargs))[0]
        leaves = [leaf for leaf in every if isinstance(leaf, Tensor)]
        on_gpu = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
        name = operation._schema.name.split("::")[1]
        target = next((leaf.type for leaf in every if isinstance(leaf, torch.device)), None)
        if not on_gpu and target != "cuda":
            return operation(*args, **kwargs)
        # Operations that are made of others arrive whole in inference mode. Batch norm would choose
        # a kernel that only a GPU has.
        if name != "batch_norm":
            with self:
                made_of_others = operation.decompose(*args, **kwargs)
            if made_of_others is not NotImplemented:
                return made_of_others
        result = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        # 1. Between the devices.
        if name in ("_to_copy", "copy_"):
            into_gpu = target == "cuda" or (target is None and isinstance(args[0], OnGpu))
            from_gpu = isinstance(args[1 if name == "copy_" else 0], OnGpu)
            if into_gpu != from_gpu:
                self.uploads += into_gpu
                self.downloads += not into_gpu
                if not into_gpu:
                    self._wait("download")
                return args[0] if name == "copy_" else OnGpu(result) if into_gpu else result
        # 2. On the device.
        strangers = [leaf for leaf in leaves if not isinstance(leaf, OnGpu) and leaf.ndim]
        assert not strangers, f"{name} mixes the devices: {[tuple(s.shape) for s in strangers]}"
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool
            for leaf in tree_flatten(args[1])[0]
        )
        if name in WAITS or masked:
            self._wait(name)
        is_view = operation.is_view or name in FREE
        if not is_view and name != "_local_scalar_dense":
            self.kernels[name] += 1
        if name.endswith("_") and not name.startswith("_"):
            return args[0]
        return tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, Tensor) else leaf, result)

    def _wait(self, name: str) -> None:
        self.waits[name] += 1
        if not self._may_wait:
            self.forbidden_waits[name] += 1


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.inner if isinstance(leaf, OnGpu) else leaf


def moved(module: torch.nn.Module) -> None:
    """Replace all weights of a module by pretended ones."""
    wrap: Callable[[Tensor], OnGpu] = lambda tensor: OnGpu(tensor.detach())  # noqa: E731
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(wrap(weight), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = wrap(buffer)
