"""A test run that is stopped leaves no process behind, however it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPO
from tests.processes import end_with_the_test_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TIMEOUT_S = 120
MARK = "CCTMN_TEST_STARTED_BY"  # in the environment of everything that the inner run starts

# A Ray of the test process, and a node as an administrator starts it.
INNER = """
import os, time
from pathlib import Path
from tests.cluster_nodes.nodes import Nodes

def test_that_is_stopped(cluster):
    nodes = Nodes({})
    Path(os.environ["CCTMN_TEST_READY"]).touch()
    time.sleep(600)
"""


def started_by(mark: str) -> dict[int, str]:
    """Command lines of the living processes with this mark, by process id."""
    processes = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            processes[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return processes


def started(mark: str, program: str) -> bool:
    """Return whether both Rays of the inner run have such a process."""
    return sum(program in line for line in started_by(mark).values()) >= 2


@pytest.mark.parametrize(
    ("how", "workers"),
    [(signal.SIGTERM, 0), (signal.SIGKILL, 1)],
    ids=["SIGTERM-one-process", "SIGKILL-xdist"],
)
def test_a_stopped_test_run_leaves_no_process(
    tmp_path: Path, how: signal.Signals, workers: int
) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)
    ready, mark = tmp_path / "ready", uuid.uuid4().hex
    # The inner run must not take itself for a worker of the outer one.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RAY_"))}
    env |= {MARK: mark, "CCTMN_TEST_READY": str(ready), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir"]
    command += [str(tmp_path), "-n", str(workers), str(tmp_path / "test_inner.py")]
    run = subprocess.Popen(
        command,
        env=env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_the_test_run,
    )
    try:
        end = time.monotonic() + TIMEOUT_S
        while not (ready.exists() and started(mark, "gcs_server") and started(mark, "raylet")):
            assert run.poll() is None, "the inner run ended before it was stopped"
            assert time.monotonic() < end, "the inner run did not start its nodes"
            time.sleep(0.2)
        run.send_signal(how)
        run.wait(timeout=TIMEOUT_S)
        end = time.monotonic() + TIMEOUT_S
        while left := started_by(mark):
            assert time.monotonic() < end, f"still running: {left}"
            time.sleep(0.5)
    finally:
        for pid in started_by(mark):
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue
