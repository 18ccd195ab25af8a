"""What `--address` accepts: a Ray, and nothing else that listens."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cctmn import embedded, runtime
from cctmn.errors import PreflightError
from tests.conftest import RecordingReporter
from tests.processes import end_with_the_test_run


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["silent", "http"])
def something_else(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that is not Ray: one that never answers, or a web server."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        return
    web = HTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_another_server_than_ray_is_refused(
    something_else: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(runtime, "CONNECT_S", 0.3)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries for minutes"))
    with (
        pytest.raises(PreflightError, match=r"what listens there is not Ray\); check --address"),
        runtime.session(something_else),
    ):
        pass


def test_a_ray_is_recognised(cluster: str) -> None:
    runtime._probe(cluster)


def test_memory_above_rays_threshold_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries for ever"))
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.0001")
    with pytest.raises(PreflightError, match="end other programs"), runtime.session():
        pass
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    assert not runtime._memory_full()


# A driver whose memory fills after its start; a Ray that does not see that does not end it first.
FILLED = """
import time
from cctmn import runtime

runtime.MEMORY_FULL_S = 2.0
with runtime.session():
    print("started", flush=True)
    runtime._memory_full = lambda: "memory: all is in use; end other programs"
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_memory_that_stays_full_ends_the_command_with_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLED],
        capture_output=True,
        text=True,
        preexec_fn=end_with_the_test_run,
    )
    assert (done.returncode, done.stdout) == (4, "started\n")
    assert done.stderr == (
        "error: memory: all is in use; end other programs, and run the same command again to "
        "resume\n"
    )


def test_a_gpu_that_cannot_come_is_refused(reporter: RecordingReporter) -> None:
    here = runtime.Resources(cpus=4, gpus=1, started_here=True)
    with pytest.raises(PreflightError, match="Ray finds 1 on this machine; check `nvidia-smi`"):
        runtime.wait_for_gpus([1, 1], available=here, limit_min=9, report=reporter)
    runtime.wait_for_gpus([1], available=here, limit_min=9, report=reporter)
    runtime.wait_for_gpus([-1], available=here, limit_min=9, report=reporter)  # "as there are"
    assert reporter.lines == []


@pytest.mark.slow
def test_a_gpu_that_may_come_is_waited_for_and_not_for_ever(
    cluster: str, monkeypatch: pytest.MonkeyPatch, reporter: RecordingReporter
) -> None:
    """The process is connected to a cluster that it did not start in this session."""
    monkeypatch.setattr(runtime, "FREE_GPU_S", 0.1)
    monkeypatch.setattr(runtime, "GPU_LOOK_S", 0.1)
    with runtime.session() as found:
        assert not found.started_here
        with pytest.raises(PreflightError, match="minutes for 3 GPU, the cluster has 0; free or"):
            runtime.wait_for_gpus([2, 1], available=found, limit_min=0.01, report=reporter)
    assert reporter.lines == ["waiting for 3 GPU, the cluster has 0; it may start one"]


def test_auto_is_for_a_job_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would join the first Ray that it finds on the machine, whoever owns it."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray joins what it finds"))
    for value in ("", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        with (
            pytest.raises(PreflightError, match="give --address HOST:6379, or leave it out"),
            runtime.session("auto"),
        ):
            pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(PreflightError, match=r"127\.0\.0\.1:1: no Ray cluster answers"),
        runtime.session("auto"),
    ):
        pass


def test_few_open_files_and_a_full_disk_are_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray does not start"))
    monkeypatch.setattr(runtime, "DISK_BYTES", 1 << 60)
    with pytest.raises(PreflightError, match="set RAY_TMPDIR to a folder on another"):
        runtime.session().__enter__()
    monkeypatch.setattr(embedded.resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(PreflightError, match=r"limit of open files is 64 .* `ulimit -n 4096`"):
        runtime.session().__enter__()


@pytest.mark.parametrize("error", [Exception("The node timed out\nMore"), OSError("No space")])
def test_a_ray_that_does_not_start_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(PreflightError) as caught:
        runtime.session().__enter__()
    assert str(caught.value).startswith(f"Ray: does not start here ({str(error).splitlines()[0]})")
    assert "\n" not in str(caught.value)


def test_only_kills_without_progress_count() -> None:
    kills = embedded.MemoryKills()
    kills.heard("Task f failed due to oom. There are infinite oom retries remaining")
    kills.heard("A worker died or was killed")
    assert kills.count(within_s=60) == 1
    assert kills.count(within_s=0) == 0
    kills.finished_something()
    assert kills.count(within_s=60) == 0


# A driver that hears what Ray says whenever it ends a worker for lack of memory.
SHORT = """
import time
from cctmn import runtime

runtime.MOST_KILLS = 2
with runtime.session():
    import ray._private.worker as driver

    for _ in range(2):
        text = "Task f failed due to oom. There are infinite oom retries remaining"
        driver.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False})
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_too_little_memory_for_a_worker_ends_the_command_with_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT],
        capture_output=True,
        text=True,
        preexec_fn=end_with_the_test_run,
    )
    assert (done.returncode, done.stdout) == (4, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: memory: there is too little for one worker")


# A Ray whose raylet has died while its driver connects.
STUCK = """
import ray, time
from cctmn import runtime

runtime.START_S = 0.5
ray.init = lambda **_: time.sleep(60)
with runtime.session():
    pass
"""


@pytest.mark.slow
def test_a_start_without_an_end_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK],
        capture_output=True,
        text=True,
        preexec_fn=end_with_the_test_run,
    )
    assert (done.returncode, done.stdout) == (4, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: Ray: no end of its start is in sight; check memory, disk")


@pytest.mark.parametrize(
    ("cores", "memory_gib", "shared_gib", "expected_gib"),
    [(2, 16, 8, 1), (64, 256, 128, 16), (64, 20, 128, 6), (64, 256, 10, 9), (64, 256, 0.06, 1)],
)
def test_the_object_store_grows_with_the_cores_within_memory(
    cores: int,
    memory_gib: float,
    shared_gib: float,
    expected_gib: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray._common.utils

    monkeypatch.setattr(runtime, "usable_cores", lambda: cores)
    monkeypatch.setattr(runtime, "shared_memory_bytes", lambda: int(shared_gib * 2**30))
    monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda: int(memory_gib * 2**30))
    assert runtime.object_store_bytes() / 2**30 == pytest.approx(expected_gib)


@pytest.mark.slow
@pytest.mark.ray
def test_no_other_ray_starts_after_a_session() -> None:
    """As it would when the garbage of a stopped job cancels its tasks."""
    script = """
from cctmn import runtime
with runtime.session():
    pass
import ray
try:
    ray.put(1)
except ray.exceptions.RaySystemError:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=end_with_the_test_run,
    )
    assert done.stdout == "refused\n", done.stderr
