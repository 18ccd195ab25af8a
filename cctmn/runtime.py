"""The only ray.init: a cluster embedded in this process, or one that is there already.

In: an address or none. Out: what the cluster has, and from it how many scorers of which kind. A
laptop gets more logical CPUs than cores, because scorers that hold every CPU leave none for the
tasks that feed them, and the job would hang.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cctmn.errors import PreflightError

SPARE_CPUS = 2.0  # for fetch, decode and write beside the scorers
MIN_CPUS = 4  # fewer logical CPUs deadlock Ray Data (ray #44687)
OBJECT_STORE_BYTES = 1 << 30  # 128 slices of 512 x 512 are 32 MiB; dozens of blocks fit
CONNECT_S = 5.0  # for a first answer of a cluster


@dataclass(frozen=True)
class Resources:
    """What the cluster has in all."""

    cpus: float
    gpus: float


@contextmanager
def session(address: str | None = None) -> Iterator[Resources]:
    """Connect to `address` ("auto" for the cluster of this job), or start Ray here and end it.

    A process that is connected already stays so, before and after.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a hospital's job tells nobody
    if address is None and not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the token is kept in HOME
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its own future default
    # At Ray's own niceness of 15, other busy processes halved a training (0.73 to 0.41 steps/s).
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # ray #53727 is noise on every run
    import ray

    if ray.is_initialized():
        yield resources()
        return
    # workers' stderr may carry what must not leave, so it stays in Ray's own log files
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "num_cpus": max(MIN_CPUS, usable_cores() + int(SPARE_CPUS)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None and address != "auto":
            _knock(address)
        with _muted_stderr():
            ray.init(address=address or "local", **options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own there
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        place = f"no Ray cluster at {address}" if address else "Ray does not start here"
        raise PreflightError(f"{place}: {str(error).splitlines()[0]}") from None
    try:
        yield resources()
    finally:
        ray.shutdown()


def resources() -> Resources:
    """What the cluster has now."""
    import ray

    have = ray.cluster_resources()
    return Resources(cpus=have.get("CPU", 0.0), gpus=have.get("GPU", 0.0))


def _knock(address: str) -> None:
    """Raise OSError if nobody listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("write it as host:port")
    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Keep the C++ core's greeting about its log level off the terminal; Python still raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_workers(resources: Resources) -> int:
    """Worker processes without a GPU: one a core, with room for what feeds them."""
    return max(1, int(resources.cpus - SPARE_CPUS))
