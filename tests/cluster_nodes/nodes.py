"""A Ray cluster of several nodes on this machine, started as an administrator starts one.

Each node is a raylet with workers of its own and can be killed as a machine dies. The head has the
dashboard, which takes jobs from those who know the token.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.processes import end_with_the_test_run
from tests.servers import free_ports

TOKEN = "0123456789abcdef" * 4
START_S = 60
STORE_BYTES = 100 << 20


def wait_for(true: Callable[[], bool], what: str, *, within_s: float = START_S) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"not in {within_s} s: {what}"
        time.sleep(0.2)


@dataclass
class Node:
    """One `ray start --block` and all that it started."""

    process: subprocess.Popen[bytes]
    log: Path
    started: list[psutil.Process] = field(default_factory=list)

    def processes(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            self.started = [*top.children(recursive=True), top]
        except psutil.NoSuchProcess:
            pass
        return [one for one in self.started if one.is_running()]

    def kill(self) -> None:
        """As a machine dies: everything, at once, without a word."""
        for one in self.processes():
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


class Nodes:
    """A head without CPUs of its own, and workers."""

    def __init__(self, env: dict[str, str]) -> None:
        self.port, dashboard, client = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.token = TOKEN
        self._folder = Path(tempfile.mkdtemp(prefix="cc", dir="/tmp"))  # sockets want short paths
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))},
            **env,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._env.pop("PYTHONPATH", None)  # a job brings its own code
        self.nodes: list[Node] = []
        self.head = self._start(
            "--head",
            f"--port={self.port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            "--num-cpus=0",
        )
        wait_for(self._answers, "dashboard")

    def add(self, *, cpus: int) -> Node:
        node = self._start(f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}")
        wait_for(lambda: b"runtime started" in node.log.read_bytes(), f"node: {node.log}")
        return node

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *options: str) -> Node:
        agent, grpc, metrics, runtime = map(str, free_ports(4))
        # Machines share no folder. In a shared one, a node that joins unpacks the code of a job
        # anew, under the feet of the workers of the other nodes.
        folder = self._folder / str(len(self.nodes))
        folder.mkdir()
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--num-gpus=0",
            f"--object-store-memory={STORE_BYTES}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--metrics-export-port={metrics}",
            f"--runtime-env-agent-port={runtime}",
            f"--temp-dir={folder}",
            *options,
        ]
        path = folder / "node.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_the_test_run,
            )
        self.nodes.append(Node(process, path))
        return self.nodes[-1]

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=1).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            pass
        return False
