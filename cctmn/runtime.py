"""Start Ray in this process or connect to a running cluster. Only this file calls ray.init.

A laptop gets more logical CPUs than cores: scorers that hold every CPU would leave none for the
tasks that feed them, and the job would hang.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil

from cctmn import embedded
from cctmn.errors import EXIT_REFUSED, PreflightError
from cctmn.reporter import Reporter, print_error

# CPUs for fetching, decoding and writing beside the scorers.
SPARE_CPUS = 2.0
# With fewer logical CPUs, Ray Data deadlocks (ray #44687).
MIN_CPUS = 4
# A block of 128 slices of 512 x 512 has 32 MiB. For each scorer one is being scored, one or two
# wait and one is being decoded, and Ray Data fills half of the object store.
OBJECT_STORE_BYTES_PER_CORE = 256 << 20
# The least, which also the smallest machine has room for, if need be on its disk.
OBJECT_STORE_BYTES = 1 << 30
# The most, as fractions of the machine's memory (Ray's own default) and of the free /dev/shm.
OF_MEMORY, OF_SHARED_MEMORY = 0.3, 0.9
# Ray starts, or accepts this driver, within seconds; on a busy machine it took half a minute.
START_S = 180.0
# Free disk for Ray's logs and for what does not fit into the object store.
DISK_BYTES = 512 << 20
# A cluster must accept a connection within this time.
CONNECT_S = 5.0
# gRPC runs on HTTP/2, where each side begins with a frame of settings (RFC 9113, 3.4 and 4.1).
_FRAME_HEADER_BYTES: Final = 9  # length (3), type (1), flags (1), stream (4)
_SETTINGS: Final = b"\x04"  # the type
_HTTP2_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
# How often the servers of a Ray that was started here are looked at.
WATCH_S = 0.2
# Memory is looked at this often. A worker that Ray ends frees some at once, so memory that is above
# the threshold all this time is not the job's, and every worker is ended before its work is done.
MEMORY_S = 1.0
MEMORY_FULL_S = 5 * 60.0
# Where there is not enough for one worker, Ray ends one every 3 s or so and never gives up.
MOST_KILLS, KILLS_WITHIN_S = 60, 10 * 60.0
# Ray labels each node that has GPUs of a known kind with their type.
GPU_TYPE: Final = "ray.io/accelerator-type"
# GPUs that are there and free are reserved within this time; then the wait looks this often.
FREE_GPU_S, GPU_LOOK_S = 2, 5
# Ray's own spelling.
_THRESHOLD: Final = "RAY_memory_usage_threshold"
_MONITOR_MS: Final = "RAY_memory_monitor_refresh_ms"
_SERVERS: Final = frozenset({"raylet", "gcs_server"})
_TOO_LITTLE: Final = (
    "memory: there is too little for one worker, and Ray has ended all of them; end other programs "
    "or use a larger machine, and run the same command again to resume"
)
_NO_START: Final = (
    "Ray: no end of its start is in sight; check memory, disk and processor load, of a cluster its "
    "head too, and run the same command again"
)
_RAY_DIED: Final = (
    "Ray has died on this machine, perhaps for lack of memory; run the same command again to resume"
)


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of the whole cluster."""

    cpus: float
    gpus: float
    # Of a Ray that `session` has started on this machine, so that no more can come.
    started_here: bool = False
    # CPUs of the nodes that have no GPU.
    cpus_elsewhere: float = 0.0
    # Ray's names for the GPUs, by which nodes can be told apart; empty if a GPU node has no name.
    gpu_types: tuple[str, ...] = ()


@contextmanager
def session(address: str | None = None) -> Iterator[Resources]:
    """Connect to `address` ("auto": the cluster of this job), or start Ray here and stop it again.

    A process that is already connected stays connected. Raises PreflightError if there is no
    cluster at the address, if Ray does not start, or if its disk is full later.
    """
    # A hospital's job must not send usage statistics to anybody.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's own future default; without it Ray warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # At Ray's own niceness of 15, other busy processes halved a training (0.73 to 0.41 steps/s).
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Every run would print the harmless error of ray #53727.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What Ray collects as garbage after this session cancels its tasks, and would start or join
    # another Ray for that.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # By its default Ray Data learns up to 0.1 s later that a task has ended. A task that decodes
    # takes 0.8 s, so that the cores were idle for 12 % of the time and now are for 6 %.
    os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")
    import ray

    if ray.is_initialized():
        yield resources()
        return
    if address == "auto":
        address = _address_of_job()
    embedded.silence_ray()
    # Workers may print patient data to stderr, so it stays in Ray's own log files.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as surroundings:
        if address is None:
            if full := _memory_full():
                raise PreflightError(full)
            embedded.check_open_files()
            folder = surroundings.enter_context(embedded.private_folder())
            store_bytes = object_store_bytes()
            on_disk = shared_memory_bytes() < store_bytes
            embedded.check_disk(folder, DISK_BYTES + store_bytes * on_disk)
            surroundings.enter_context(embedded.token_and_loopback(folder))
            options |= {
                "num_cpus": max(MIN_CPUS, usable_cores() + int(SPARE_CPUS)),
                "object_store_memory": store_bytes,
                "include_dashboard": False,
                "_temp_dir": embedded.ray_folder(folder),
            }
        with embedded.fewest_servers() if address is None else nullcontext():
            _connect(address, options)
        surroundings.callback(ray.shutdown)
        if address is None:
            surroundings.enter_context(embedded.ended_with_driver(folder))
        surroundings.enter_context(_watched(started_here=address is None))
        found = resources()
        yield replace(found, started_here=address is None)


def _address_of_job() -> str:
    """Return the address of the cluster that runs this job.

    Raises PreflightError without one: Ray would join any cluster that it finds on this machine.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto"):
        raise PreflightError(
            "--address auto: this is not a job of a cluster, which has its address in RAY_ADDRESS; "
            "give --address HOST:6379, or leave it out to start Ray here"
        )
    return address


def _connect(address: str | None, options: dict[str, Any]) -> None:
    """Call ray.init; raises PreflightError if it fails."""
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            _probe(address)
        with _muted_stderr() as unmute, _limited(unmute):
            ray.init(address=address or "local", **options)
        if threading.current_thread() is threading.main_thread():
            # Ray has installed a handler of its own.
            signal.signal(signal.SIGTERM, on_sigterm)
    except Exception as error:  # noqa: BLE001  (Ray raises just that where a node times out)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if private := options.get("_temp_dir"):
            reason = reason.replace(private, "its folder")
            raise PreflightError(
                f"Ray: does not start here ({reason}); check memory, disk and processor load, and "
                "run the same command again"
            ) from None
        raise PreflightError(
            f"{address}: no Ray cluster answers ({reason}); check --address and the cluster"
        ) from None


@contextmanager
def _limited(unmute: Callable[[], object]) -> Iterator[None]:
    """End this process with one line if Ray does not start within START_S.

    If its raylet dies at the wrong moment, Ray waits for ever.
    """
    done = threading.Event()

    def watch() -> None:
        if not done.wait(START_S):
            unmute()
            _end(_NO_START, done)

    threading.Thread(target=watch, name="watch-start", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def _watched(*, started_here: bool) -> Iterator[None]:
    """End this process with one line where Ray would go on for ever, or end it without a word.

    On any cluster Ray starts workers again that it ends for lack of memory. Of a Ray that was
    started here, the servers and the memory of the machine are watched too: Ray itself waits a
    minute for its GCS, and ends the process without a word if its raylet dies.
    """
    ours = psutil.Process().children(recursive=True) if started_here else []
    servers = [p for p in ours if p.name() in _SERVERS]
    done = threading.Event()
    embedded.memory_kills.finished_something()

    def watch() -> None:
        looks, full_s = 0, 0.0
        while not done.wait(WATCH_S):
            looks += 1
            full = ""
            if started_here and looks % round(MEMORY_S / WATCH_S) == 0:
                full = _memory_full()
                full_s = full_s + MEMORY_S if full else 0.0
            if any(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in servers):
                _end(_RAY_DIED, done)
            elif embedded.memory_kills.count(within_s=KILLS_WITHIN_S) >= MOST_KILLS:
                _end(_TOO_LITTLE, done)
            elif full_s >= MEMORY_FULL_S:
                _end(f"{full}, and run the same command again to resume", done)

    thread = threading.Thread(target=watch, name="watch-ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _end(text: str, done: threading.Event) -> None:
    """End this process and its children with one line, unless Ray is being stopped anyway."""
    if done.is_set():
        return
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # The shell of embedded.ended_with_driver removes Ray's folder.
            if process.name() != "sh":
                process.kill()
    print_error(text, named=text)
    os._exit(EXIT_REFUSED)


def _memory_full() -> str:
    """Return what to do if more memory is used than Ray allows, else an empty text.

    Ray would end each worker soon after its start, and start the next one, for ever.
    """
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    threshold = float(os.environ.get(_THRESHOLD, "0.95"))  # Ray's own default
    if os.environ.get(_MONITOR_MS) == "0":
        return ""
    used, total = get_used_memory(), get_system_memory()
    if used <= threshold * total:
        return ""
    return (
        f"memory: {used / 2**30:.1f} of {total / 2**30:.1f} GiB are in use, and above "
        f"{threshold:.0%} Ray ends every worker; end other programs, or allow more"
    )


def resources() -> Resources:
    """Return the CPUs and GPUs of the whole cluster, busy ones too."""
    import ray

    total = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node["Resources"].get("GPU")]
    types = {node.get("Labels", {}).get(GPU_TYPE, "") for node in with_gpu}
    return Resources(
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        cpus_elsewhere=sum(n["Resources"].get("CPU", 0.0) for n in nodes if n not in with_gpu),
        gpu_types=() if "" in types else tuple(sorted(types)),
    )


def object_store_bytes() -> int:
    """Return the size of the object store of a Ray that is started here.

    It grows with the cores, of which there are at least as many as scorers, within what memory and
    /dev/shm allow. Ray takes the memory only when it is used.
    """
    from ray._common.utils import get_system_memory

    room = min(OF_MEMORY * get_system_memory(), OF_SHARED_MEMORY * shared_memory_bytes())
    wanted = OBJECT_STORE_BYTES_PER_CORE * usable_cores()
    return max(OBJECT_STORE_BYTES, int(min(wanted, room)))


def shared_memory_bytes() -> int:
    """Return the free bytes of /dev/shm; if they are too few, Ray keeps its objects on disk."""
    from ray._private.utils import get_shared_memory_bytes

    return int(get_shared_memory_bytes()) if sys.platform == "linux" else OBJECT_STORE_BYTES


def finished_something() -> None:
    """Tell the watch that the job moves, although Ray may end workers for lack of memory."""
    embedded.memory_kills.finished_something()


def wait_for_gpus(
    bundles: Sequence[float], *, available: Resources, limit_min: float, report: Reporter
) -> None:
    """Wait until the cluster has free GPUs for processes that need these fractions of GPUs.

    The wait is also the request at which an autoscaler starts nodes. Raises PreflightError after
    `limit_min` minutes, and at once if Ray was started here and the machine has too few.
    """
    needed = sum(bundles)
    if needed <= 0 or (available.started_here and needed <= available.gpus):
        return
    if available.started_here:
        raise PreflightError(
            f"GPU: {needed:g} asked for, and Ray finds {available.gpus:g} on this machine; check "
            "`nvidia-smi`, or use the CPU (--set gpus=0, for training --set hardware.device=cpu)"
        )
    import ray.util

    group = ray.util.placement_group([{"GPU": gpus} for gpus in bundles])
    end = time.monotonic() + 60 * limit_min
    try:
        if group.wait(FREE_GPU_S):
            return
        report(f"waiting for {needed:g} GPU, the cluster has {available.gpus:g}; it may start one")
        while not group.wait(GPU_LOOK_S):
            if time.monotonic() >= end:
                raise PreflightError(
                    f"waited {limit_min:g} minutes for {needed:g} GPU, the cluster has "
                    f"{resources().gpus:g}; free or add GPUs, ask for fewer, or wait longer "
                    "(gpu_wait_min), and run the same command again"
                )
    finally:
        ray.util.remove_placement_group(group)


def _probe(address: str) -> None:
    """Raise OSError if no gRPC server answers at the address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("write it as host:port")
    with socket.create_connection((host, int(port)), timeout=CONNECT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(_HTTP2_GREETING)
        try:
            answer = connection.recv(_FRAME_HEADER_BYTES, socket.MSG_WAITALL)
        except TimeoutError:
            answer = b""
    if answer[3:4] != _SETTINGS:
        raise ConnectionError("what listens there is not Ray")


@contextmanager
def _muted_stderr() -> Iterator[Callable[[], object]]:
    """Hide the C++ core's message about its log level; errors of Python are still raised.

    Yields a function that ends this at once.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield lambda: os.dup2(kept, 2)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_workers(resources: Resources) -> int:
    """Return the number of CPU workers: one per core, with CPUs left for what feeds them."""
    return max(1, int(resources.cpus - SPARE_CPUS))
