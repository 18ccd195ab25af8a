"""`cctmn submit` on three nodes: from S3 to S3, one of them killed, and who is refused."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from cctmn import folder, store, tables
from cctmn.errors import ResumeError
from cctmn.model import checkpoint
from cctmn.phantom import layouts as phantom
from cctmn.store import s3_client
from tests.cluster_nodes.conftest import TIMEOUT_S, Submit, ended, files, wait_for_commits
from tests.cluster_nodes.nodes import Nodes, wait_for
from tests.conftest import REPO, S3Server, Servers
from tests.servers import lead_to
from tests.train import small

pytestmark = pytest.mark.slow

BLOCK_ROWS = 4
COPIES = 3  # of each real slice, under other names
MODEL = REPO / "cctmn" / "assets" / "models" / "demo"


@pytest.fixture(scope="module")
def archive(shared: Path, s3: S3Server) -> int:
    """Real slices and the model that ships, on S3; the number of slices."""
    s3.bucket("nodes")
    for path in MODEL.iterdir():
        s3.upload("nodes", f"model/{path.name}", path.read_bytes())
    slices = sorted((shared / "data" / "ct_slices").glob("*.[jp][pn]g"))
    for number in range(COPIES):
        for path in slices:
            s3.upload("nodes", f"in/{number}/{path.name}", path.read_bytes())
    return COPIES * len(slices)


def test_a_killed_node_loses_nothing(
    nodes: Nodes, submit: Submit, archive: int, tmp_path: Path
) -> None:
    out, tally = "s3://nodes/killed", tmp_path / "tally"
    tally.touch()
    args = [
        "s3://nodes/in",
        "-o",
        out,
        "-m",
        "s3://nodes/model",
        "--set",
        f"block_rows={BLOCK_ROWS}",
    ]
    began = time.monotonic()
    job = submit("tests/cluster_nodes/counted.py", "--env", f"CCTMN_TALLY={tally}", "--", *args)
    try:
        wait_for_commits(out, archive / 3 / BLOCK_ROWS, job)
        victim = nodes.nodes[-1]
        assert any("_ScoreBlock" in "".join(p.cmdline()) for p in victim.processes())
        done = files(out)
        killed = time.monotonic()
        victim.kill()
        output, _ = ended(job)
    finally:
        job.kill()
        nodes.add(cpus=2)
    print(output)
    assert f"{archive} slices = " in output
    ids = Counter(row["slice_id"] for row in tables.rows(f"{out}/predictions"))
    assert len(ids) == archive
    assert set(ids.values()) == {1}
    manifest = json.loads(store.read_all(f"{out}/manifest.json"))
    none = dict.fromkeys(("passed_over", "error", "pending"), 0)
    assert manifest["counts"] == {"inventory": archive, "ok": archive} | none
    twice = tally.stat().st_size / archive - 1
    print(
        f"\n{archive} slices, node killed after {done} commits at {killed - began:.0f} s, "
        f"ended at {time.monotonic() - began:.0f} s; work done twice: {twice:.1%}"
    )
    assert 0 <= twice < 0.25


def test_a_job_that_is_sent_from_here_scores_on_ceph(
    nodes: Nodes,
    submit: Submit,
    servers: Servers,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cluster's machines know the keys, and the endpoint travels with the job."""
    lead_to(servers.plain("rgw"), monkeypatch)
    request.addfinalizer(s3_client.clear)
    s3_client.client("").create_bucket(Bucket="sent")
    study = tmp_path / "study.zip"
    phantom.write_archive(study, patients=2, slices=6, seed=4)
    for path in (study, *MODEL.iterdir()):
        store.put(f"s3://sent/{path.parent.name}/{path.name}", path.read_bytes())
    inputs, out, model = f"s3://sent/{tmp_path.name}", "s3://sent/out", f"s3://sent/{MODEL.name}"
    output, _ = ended(submit("jobs/score.py", "--", inputs, "-o", out, "-m", model))
    assert "12 slices = " in output
    assert len({row["slice_id"] for row in tables.rows(f"{out}/predictions")}) == 12


def test_without_the_token_a_job_is_refused(submit: Submit) -> None:
    for token in (None, "f" * 64):
        job = submit("jobs/score.py", "--", "s3://nodes/in", "-o", "s3://nodes/no", token=token)
        _, talk = ended(job, 4)
        [line] = talk.strip().splitlines()
        assert line.startswith("error: ")
        assert "token" in line


def test_a_second_job_or_writer_of_an_output_is_refused(
    submit: Submit, archive: int, tmp_path: Path
) -> None:
    """By Ray where it is submitted, by the lock object where it is started otherwise."""
    out = "s3://nodes/twice"
    args = ["--", "s3://nodes/in", "-o", out, "-m", "s3://nodes/model"]
    slow = ["--set", "actors=1", "--set", f"block_rows={BLOCK_ROWS}"]
    first, talk = ended(submit("--no-wait", "jobs/score.py", *args, *slow))
    name = first.strip()
    assert name in talk
    _, talk = ended(submit("jobs/score.py", *args), 2)
    assert store.read_optional(f"{out}/manifest.json") is None  # refused while the first still runs
    assert name in talk
    assert "--stop" in talk
    wait_for(lambda: store.read_optional(f"{out}/private/lock") is not None, "lock")
    with pytest.raises(ResumeError, match=name), folder.only_writer(out):
        pass
    # while Ray starts in the job it answers SIGTERM itself, and the lock is left to its lease
    wait_for(lambda: files(out) > 0, "a commit", within_s=TIMEOUT_S)
    _, talk = ended(submit("--stop", name))
    assert "STOPPED" in talk
    log, _ = ended(submit("--follow", name), 130)
    assert "Run the same command again to resume." in log
    assert store.read_optional(f"{out}/private/lock") is None, log
    with folder.only_writer(out):  # it is free again
        pass
    second, _ = ended(submit("--no-wait", "jobs/score.py", *args, "--limit", 1))
    assert second.strip() == f"{name}-2"
    ended(submit("--stop", f"{name}-2"))


def test_two_nodes_train_and_a_killed_worker_resumes(
    nodes: Nodes, submit: Submit, s3: S3Server, tmp_path: Path
) -> None:
    """Data-parallel on both, from S3 to S3; a worker is killed once a checkpoint is there."""
    s3.bucket("training")
    for name, count, seed in (("lesions", 6, 1), ("valid", 2, 2)):
        small.write_lesions(tmp_path / name, count=count, seed=seed)
    checkpoint.save(small.quiet_detector(), tmp_path / "m", card=small.small_card())
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            s3.upload("training", str(path.relative_to(tmp_path)), path.read_bytes())
    out, epochs = "s3://training/out", 4
    sets = [f"optim.epochs={epochs}", "optim.batch_size=2", "hardware.workers=2"]
    sets += ["hardware.threads=1", "hardware.checkpoint_s=0"]
    args = ["--data", "s3://training/lesions", "--valid", "s3://training/valid"]
    args += ["-m", "s3://training/m", "-o", out, *(part for s in sets for part in ("--set", s))]
    job = submit("jobs/train_detector.py", "--", *args)
    killed: list[int] = []

    def checkpointed() -> bool:
        if job.poll() is not None:
            ended(job, -1)
        return store.read_optional(f"{out}/metrics.csv") is not None

    try:
        wait_for(checkpointed, "a checkpoint", within_s=TIMEOUT_S)
        workers = {
            number: process
            for number, node in enumerate(nodes.nodes)
            for process in node.processes()
            if "RayTrainWorker" in " ".join(process.cmdline())
        }
        assert len(workers) == 2, "a worker on each of two nodes"
        _, victim = workers.popitem()
        victim.kill()
        killed.append(victim.pid)
        output, _ = ended(job)
    finally:
        job.kill()
    assert killed
    assert f"of {epochs}" in output
    rows = store.read_all(f"{out}/metrics.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n + 1) for n in range(epochs)]
    assert store.read_optional(f"{out}/model/card.json") is not None
