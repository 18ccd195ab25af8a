"""A Ray that is started here: who can reach it, what it leaves behind, what it prints."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cctmn import embedded
from cctmn.errors import PreflightError
from tests.processes import end_with_the_test_run

TIMEOUT_S = 60

# Starts Ray, kills one of its workers during a task, and describes what runs.
DRIVER = """
import json, os, sys, psutil
from cctmn import runtime

with runtime.session():
    import ray

    @ray.remote(max_retries=1)
    def killed(path):
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), 9)
        return os.environ.get("RAY_AUTH_MODE")

    mode = ray.get(killed.remote(sys.argv[1]))
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listens = [
        c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"
    ]
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    private = os.path.dirname(os.path.dirname(session))
    ray._private.worker.print_to_stdstream({"lines": ["LEAKED"], "pid": "raylet", "is_err": False})
    print(json.dumps({
        "mode": mode, "listens": listens, "folder": private,
        "rights": oct(os.stat(private).st_mode & 0o777),
        "processes": [p.pid for p in processes[1:]],
        "servers": [p.name() + " ".join(p.cmdline()[:4]) for p in processes[1:]],
    }), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    def start() -> tuple[subprocess.Popen[str], dict[str, Any]]:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
        # Nothing can be written there, not even by root.
        environment["HOME"] = "/proc/nowhere"
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / "MUSTERMANN^ERIKA")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=end_with_the_test_run,
        )
        assert driver.stdout is not None
        return driver, json.loads(driver.stdout.readline() or "{}")

    return start


@pytest.mark.slow
@pytest.mark.ray
def test_nobody_else_reaches_it_and_a_killed_worker_prints_nothing(start: Any) -> None:
    driver, seen = start()
    output, errors = driver.communicate("\n", timeout=TIMEOUT_S)
    assert (driver.returncode, output, errors) == (0, "", "")
    assert seen["mode"] == "token"
    addresses = [ipaddress.ip_address(ip) for ip in seen["listens"]]
    assert addresses
    for address in addresses:
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback
    assert seen["rights"] == "0o700"
    assert not Path(seen["folder"]).exists()
    for needless in ("monitor.py", "log_monitor.py", "dashboard/dashboard.py"):
        assert not [server for server in seen["servers"] if needless in server]


@pytest.mark.slow
@pytest.mark.ray
def test_nothing_outlives_a_killed_driver(start: Any) -> None:
    driver, seen = start()
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=TIMEOUT_S)

    def left() -> list[int]:
        alive = []
        for pid in seen["processes"]:
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    alive.append(pid)
            except psutil.NoSuchProcess:
                pass
        return alive

    end = time.monotonic() + 15  # Ray's own agents stay for a minute
    while left() or Path(seen["folder"]).exists():
        assert time.monotonic() < end, left()
        time.sleep(0.1)


def test_ray_still_starts_its_servers_by_the_methods_that_are_replaced() -> None:
    from ray._private.node import Node

    before = dict(vars(Node))
    with embedded.fewest_servers():
        changed = {name for name, value in vars(Node).items() if before[name] is not value}
    assert changed == set(embedded.NEEDLESS)
    assert dict(vars(Node)) == before


def test_a_long_tmpdir_gives_way_to_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(embedded.tempfile, "gettempdir", lambda: str(long))
    with embedded.private_folder() as folder:
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    monkeypatch.setattr(embedded.os, "access", lambda *_: False)
    with pytest.raises(PreflightError, match="set RAY_TMPDIR to a writable folder"):
        embedded._base()


def test_the_folder_of_a_killed_driver_is_removed_and_a_living_ones_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = Path("/tmp") / f"t{os.getpid()}"
    base.mkdir()
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(base))
        dead = base / f"{embedded.PREFIX}dead"
        dead.mkdir()
        (dead / "lock").touch()
        with embedded.private_folder() as living:
            with embedded.private_folder():
                assert living.exists()
            assert not dead.exists()
    finally:
        base.rmdir()
