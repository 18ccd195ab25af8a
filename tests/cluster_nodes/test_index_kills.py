"""A worker node, the driver and the head die, each while the index of INPUT still runs."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import psutil
import pyarrow as pa
import pytest

from cctmn import tables
from tests.cluster_nodes.conftest import (
    KEYS,
    TIMEOUT_S,
    WORKER_CPUS,
    Submit,
    ended,
    files,
    submit_to,
    wait_for_commits,
)
from tests.cluster_nodes.nodes import Nodes
from tests.conftest import S3Server
from tests.makers import png

pytestmark = pytest.mark.slow

OBJECTS = 400
OPEN_S = 1.0  # that the storage takes to answer for an object
OUT = "s3://slow/out"
ARGS = ["tests/cluster_nodes/slowly_indexed.py", "--", "s3://slow/in", "-o", OUT, "-m", "any"]


def indexed() -> int:
    shards = tables.parquet_files(f"{OUT}/private/inventory")
    return sum(map(len, tables.read_each(shards, ["slice_id"])))


def wait_for_one_more_commit(job: subprocess.Popen[str], *, held: int) -> None:
    """The index must still run then."""
    wait_for_commits(OUT, held + 1, job)
    assert indexed() < OBJECTS


@pytest.mark.timeout(600)
def test_a_killed_node_a_killed_driver_and_a_killed_head_lose_nothing_while_the_index_runs(
    nodes: Nodes, submit: Submit, s3: S3Server
) -> None:
    s3.bucket("slow")
    for n in range(OBJECTS):
        s3.upload("slow", f"in/{n:03d}.png", png(n % 20))

    def slowly(environ: dict[str, Any]) -> None:
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].startswith("/slow/in/"):
            time.sleep(OPEN_S)

    s3.fault = slowly
    try:
        job = submit(*ARGS)
        wait_for_one_more_commit(job, held=0)
        nodes.nodes[-1].kill()
        nodes.add(cpus=WORKER_CPUS)
        wait_for_one_more_commit(job, held=files(OUT))
        for process in psutil.process_iter(["cmdline"]):
            if any(word.endswith("slowly_indexed.py") for word in process.info["cmdline"] or ()):
                process.kill()
        job.communicate(timeout=TIMEOUT_S)
        held = files(OUT)
        job = submit(*ARGS)
        wait_for_one_more_commit(job, held=held)
        nodes.head.kill()  # and the driver, which runs there
        job.kill()
        job.communicate()
        assert indexed() < OBJECTS
    finally:
        s3.fault = None
    nodes.close()  # a cluster does not outlive its head
    another = Nodes(KEYS)
    try:
        another.add(cpus=WORKER_CPUS)
        output, _ = ended(submit_to(another)(*ARGS))
    finally:
        another.close()
    assert f"{OBJECTS} slices = {OBJECTS} ok" in output
    ids = [row["slice_id"] for row in tables.rows(f"{OUT}/predictions")]
    assert len(ids) == len(set(ids)) == OBJECTS
    inventory = pa.concat_tables(tables.inventory(f"{OUT}/private/inventory"))
    assert sorted(inventory["slice_id"].to_pylist()) == sorted(ids)
