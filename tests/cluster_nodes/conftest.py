"""A cluster of three nodes with token authentication, and `cctmn submit` to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn import tables
from tests.cluster_nodes.nodes import Nodes, wait_for
from tests.conftest import REPO, S3Server
from tests.processes import end_with_the_test_run

# What the machines know, as by their roles.
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
WORKER_CPUS = 2
TIMEOUT_S = 150

Submit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def nodes(s3: S3Server) -> Iterator[Nodes]:
    """A head that runs no tasks, and two workers; the machines know the keys of S3, as roles do."""
    cluster = Nodes(KEYS)
    try:
        for _ in range(2):
            cluster.add(cpus=WORKER_CPUS)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def submit(nodes: Nodes) -> Submit:
    """Start `cctmn submit` to the cluster."""
    return submit_to(nodes)


def submit_to(nodes: Nodes) -> Submit:
    """Return what starts the command as a person does, who knows the cluster's token."""

    def start(*args: object, token: str | None = nodes.token, cwd: Path = REPO, **env: str) -> Any:
        known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        known |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
        command = [sys.executable, "-m", "cctmn.cli", "submit", "--address", nodes.address]
        return subprocess.Popen(
            [*command, *map(str, args)],
            env=known | {"PYTHONPATH": str(REPO)} | env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=end_with_the_test_run,
        )

    return start


def ended(job: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a job printed, by its two streams; it must end in time with this code."""
    try:
        out, talk = job.communicate(timeout=TIMEOUT_S)
    finally:
        job.kill()
    assert job.returncode == code, out[-5000:] + talk[-5000:]
    return out, talk


def files(out: str) -> int:
    """The number of files that a job has committed."""
    return len(tables.parquet_files(f"{out}/predictions"))


def wait_for_commits(out: str, count: float, job: subprocess.Popen[str]) -> None:
    """Wait until a job has committed so many files."""

    def enough() -> bool:
        if job.poll() is not None:
            ended(job, -1)  # shows why
        return files(out) >= count

    wait_for(enough, "commits", within_s=TIMEOUT_S)
