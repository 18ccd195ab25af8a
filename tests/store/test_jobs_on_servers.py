"""Whole jobs on real servers: scoring that is killed and resumed, training with checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cctmn import store, tables
from cctmn.model import checkpoint
from cctmn.phantom import layouts as phantom
from cctmn.store import s3_client
from tests.commands import call, one_line
from tests.conftest import Servers
from tests.processes import end_with_the_test_run
from tests.servers import lead_to
from tests.store.test_servers import CONDITIONAL
from tests.train import small

pytestmark = [pytest.mark.slow, pytest.mark.ray]
BUCKET = "whole-jobs"


@pytest.fixture(params=["rgw", "swift over TLS"])
def server(
    request: pytest.FixtureRequest, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Lead this test and the commands that it starts to one server, and return its name."""
    name, _, tls = request.param.partition(" ")
    lead_to(servers.over_tls(name) if tls else servers.plain(name), monkeypatch)
    client = s3_client.client("")
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    yield name
    s3_client.clear()


def upload(folder: Path, prefix: str) -> str:
    """Write the files of a folder below a prefix of the bucket, and return its URI."""
    uri = f"s3://{BUCKET}/{prefix}"
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return uri


def start(*job: str) -> subprocess.Popen[bytes]:
    """Start the command with a Ray of its own, in a process group that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "cctmn.cli", *job],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_the_test_run,
    )


def wait_until(written: Callable[[], object], run: subprocess.Popen[bytes]) -> None:
    while not written():
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)


def test_a_killed_scoring_is_resumed(
    server: str,
    cctmn: Callable[..., subprocess.CompletedProcess[str]],
    fresh_model: Path,
    tmp_path: Path,
) -> None:
    study = tmp_path / "study.zip"
    phantom.write_archive(study, patients=3, slices=8, seed=3)
    inputs, model, out = f"s3://{BUCKET}/in", upload(fresh_model, "model"), f"s3://{BUCKET}/out"
    store.put(f"{inputs}/{study.name}", study.read_bytes())

    def predictions() -> set[str]:
        return {found.uri for found in store.find_objects(f"{out}/predictions/")}

    job = ["score", inputs, "-o", out, "-m", model, "--set", "block_rows=2", "--set", "actors=1"]
    with start(*job) as run:
        wait_until(predictions, run)
        one_line(call(*job), code=2, message=f"{out}/private/lock: process {run.pid} on ")
        os.killpg(run.pid, signal.SIGKILL)
    before = predictions()
    done = cctmn(*job)
    assert done.returncode == 0, done.stderr
    assert ("does not know conditional" in done.stderr) == (not CONDITIONAL[server])
    assert before < predictions()
    rows = [row["slice_id"] for row in tables.rows(f"{out}/predictions")]
    assert len(rows) == len(set(rows)) == 3 * 8
    assert store.read_optional(f"{out}/private/lock") is None


def test_a_killed_training_is_resumed_from_its_checkpoint(
    server: str, cctmn: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    small.write_lesions(tmp_path / "lesions", count=4, seed=1)
    small.write_lesions(tmp_path / "valid", count=2, seed=2)
    checkpoint.save(small.quiet_detector(), tmp_path / "m", card=small.small_card())
    data = upload(tmp_path, "data")
    out, epochs = f"s3://{BUCKET}/trained", 6
    job = ["train", "detector", "--data", f"{data}/lesions", "--valid", f"{data}/valid"]
    job += ["-m", f"{data}/m", "-o", out, "--set", f"optim.epochs={epochs}"]
    job += ["--set", "hardware.checkpoint_s=0", "--set", "hardware.workers=1"]
    with start(*job) as run:
        wait_until(lambda: store.read_optional(f"{out}/metrics.csv"), run)
        os.killpg(run.pid, signal.SIGKILL)
    done = cctmn(*job)
    assert done.returncode == 0, done.stderr
    assert "epoch 1: training" not in done.stderr, "it began anew"
    rows = store.read_all(f"{out}/metrics.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n + 1) for n in range(epochs)]
    assert store.read_optional(f"{out}/model/card.json") is not None
