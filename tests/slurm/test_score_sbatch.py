"""cluster/slurm/score.sbatch on a real SLURM of two nodes, both on this machine.

SLURM and munge come from Debian's packages. Each node is a slurmd with a port of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.makers import png
from tests.processes import end_with_the_test_run
from tests.score.conftest import manifest, predictions, results
from tests.servers import free_ports
from tests.stand_in_command import environment

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(900)]

SLICES = 120
SLEEP_S = 0.25  # per slice, so that a job can be stopped before its end
WITHIN_S = 300.0
SCRIPT = REPO / "cluster/slurm/score.sbatch"
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch")
# A requeued job waits until its credential has expired, by default for two minutes.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/s,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
PlugStackConfig={folder}/none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=0
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=4 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.3)


@dataclass(frozen=True)
class Slurm:
    """A cluster of two nodes, and the folder with what its jobs need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, out: Path, *options: str) -> str:
        """Submit a job over the pictures; return its id."""
        words = [*options, "--parsable", f"--output={out}.log", SCRIPT, self.folder / "pictures"]
        return self.run("sbatch", *words, "-o", out, "-m", "any", "--set", "block_rows=4").strip()

    def state(self, job: str) -> str:
        shown = self.run("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    os.environ["PATH"] += ":/usr/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"no {', '.join(missing)}: install slurm-wlm and munge")
    if os.geteuid():
        pytest.skip("only root can start a SLURM whose jobs are its own")
    # Sockets want short paths, and munge a folder that nobody else may write to.
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    for name in ("munge", "state", "spool", "bin", "pictures"):
        (folder / name).mkdir(mode=0o700)
    controller, node1, node2 = free_ports(3)
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            controller=controller,
            node1=node1,
            node2=node2,
        )
    )
    for n in range(SLICES):
        (folder / f"pictures/{n:03d}.png").write_bytes(png(n % 40))
    command = folder / "bin/cctmn"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.stand_in_command "$@"\n')
    command.chmod(0o755)
    variables = environment(sleep_s=SLEEP_S) | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    munge = folder / "munge"
    subprocess.run(["mungekey", f"--keyfile={folder}/key"], check=True)
    paths = {"key-file": "../key", "socket": "s", "pid-file": "pid", "log-file": "log"}
    paths |= {"seed-file": "seed"}
    options = [f"--{name}={(munge / path).resolve()}" for name, path in paths.items()]
    node = ["slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N"]
    commands = [
        ["munged", "--foreground", "--force", *options],
        ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"],
        [*node, "node1"],
        [*node, "node2"],
    ]
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for words in commands:
            with (folder / f"{len(servers)}.log").open("wb") as log:
                server = subprocess.Popen(
                    words,
                    env=variables,
                    stdout=log,
                    stderr=log,
                    preexec_fn=end_with_the_test_run,
                )
            servers.append(server)
            time.sleep(1)
        cluster = Slurm(folder, variables)
        try:
            wait_for(lambda: cluster.run("sinfo", "-h", "-o", "%T %D") == "idle 2\n", "two nodes")
        except AssertionError:
            logs = [path.read_text()[-300:] for path in sorted(folder.glob("*.log"))]
            pytest.skip(f"SLURM does not start here: {logs}")
        yield cluster
    finally:
        for server in reversed(servers):
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def plain(slurm: Slurm) -> Path:
    """The output of a run without SLURM."""
    out = slurm.folder / "plain"
    slurm.run("cctmn", "score", slurm.folder / "pictures", "-o", out, "-m", "any", "-q")
    return out


def committed(out: Path) -> int:
    return len(list(out.glob("predictions/*.parquet")))


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_is_terminated_goes_back_into_the_queue_and_resumes(
    slurm: Slurm, plain: Path, nodes: int
) -> None:
    out = slurm.folder / f"out{nodes}"
    job = slurm.submit(out, f"--nodes={nodes}", "--cpus-per-task=4")
    wait_for(lambda: committed(out) > 1, "commits")
    held = committed(out)
    slurm.run("scancel", "--signal=TERM", "--batch", job)
    wait_for(lambda: "put back into the queue" in Path(f"{out}.log").read_text(), "requeue")
    assert committed(out) < SLICES / 4
    wait_for(lambda: slurm.state(job) == "COMPLETED", Path(f"{out}.log").read_text())
    assert held > 0
    assert manifest(out)["counts"] == manifest(plain)["counts"]
    assert manifest(out)["last_run"]["slices"] < SLICES
    ours, theirs = (
        {name: results(row) for name, row in predictions(folder).items()} for folder in (out, plain)
    )
    assert ours == theirs
    assert len(ours) == SLICES


def test_a_mistake_is_not_repeated(slurm: Slurm) -> None:
    out = slurm.folder / "mistake"
    job = slurm.submit(out, "--nodes=1", "--export=ALL,CCTMN_TEST_SLEEP_S=0")
    wait_for(lambda: slurm.state(job) == "COMPLETED", "the first run")
    words = ["--parsable", f"--output={out}.2.log", SCRIPT, slurm.folder / "nothing", "-o", out]
    job = slurm.run("sbatch", *words, "-m", "any").strip()
    wait_for(lambda: slurm.state(job) == "FAILED", "the refusal")
    text = Path(f"{out}.2.log").read_text()
    assert "no such file, folder, prefix or match" in text
    assert "queue" not in text
