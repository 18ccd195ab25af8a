"""What is checked before a job is sent to a cluster, on local disk and a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cctmn import store
from cctmn.cli import cli, submission
from cctmn.errors import CctmnError, ConfigError, InputError, ModelError, ResumeError
from cctmn.identity import KEY
from cctmn.model.card import ASSETS
from cctmn.numerics import CPU
from cctmn.score.job import ScoreJob
from cctmn.score.models import open_source
from tests.conftest import S3Server

DEMO = "cctmn:demo"


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket with a slice and the demo model."""
    s3.bucket("submission")
    s3.upload("submission", "in/1.dcm", b"1")
    for path in (ASSETS / "demo").iterdir():
        s3.upload("submission", f"model/{path.name}", path.read_bytes())
    return "s3://submission"


def checked(
    *args: str, job: str = "score", folder: Path | None = None, env: dict[str, str] | None = None
) -> list[str]:
    """Check a job, and return what could not be checked."""
    lines: list[str] = []
    asked = submission.read(job, args, group=cli)
    submission.check(asked, env=env or {}, folder=folder, write=lines.append)
    return lines


def test_a_job_whose_places_are_all_on_s3_is_checked_without_a_word(bucket: str) -> None:
    assert checked(f"{bucket}/in", "-o", f"{bucket}/new", "-m", f"{bucket}/model") == []


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (["B/none", "-o", "B/new", "-m", DEMO], InputError, "B/none: there is nothing; check"),
        (["s3://no-such-bucket/in", "-o", "B/new", "-m", DEMO], InputError, "no such bucket; "),
        (["B/in", "-o", "B/new", "-m", "B/in"], ModelError, "B/in: card.json not found; "),
        (["here", "-o", "B/new", "-m", DEMO], ConfigError, "here: a relative path that"),
        (["B/in", "-o", "B/new", "-m", "model"], ConfigError, "model: a relative path that"),
        (["~/here", "-o", "B/new", "-m", DEMO], ConfigError, "~/here: a relative path that"),
        (["B/in", "-o", "B/new", "-m", DEMO, "--set", "actors=-3"], ConfigError, "actors"),
    ],
)
def test_a_job_that_cannot_succeed_is_refused(
    bucket: str, tmp_path: Path, args: list[str], kind: type[CctmnError], message: str
) -> None:
    with pytest.raises(kind) as refused:
        checked(*(arg.replace("B/", f"{bucket}/") for arg in args), folder=tmp_path)
    assert message.replace("B/", f"{bucket}/") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_that_are_cut_are_refused(bucket: str, s3: S3Server) -> None:
    store.put(f"{bucket}/cut/card.json", store.read_all(f"{bucket}/model/card.json"))
    for data in (None, b"cut"):
        if data is not None:
            store.put(f"{bucket}/cut/weights.safetensors", data)
        with pytest.raises(ModelError, match="is missing or is cut; copy the model again"):
            checked(f"{bucket}/in", "-o", f"{bucket}/new", "-m", f"{bucket}/cut")


def test_a_relative_path_in_the_upload_is_accepted(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.dcm").write_bytes(b"1")
    (tmp_path / "settings.toml").write_text("actors = 2\n")
    args = ["in", "-o", f"{bucket}/new", "-m", DEMO, "--config", "settings.toml"]
    assert checked(*args, folder=tmp_path) == []


@pytest.mark.parametrize(
    ("args", "env", "line"),
    [
        (["/no/such/in", "-m", DEMO], {}, "INPUT /no/such/in (it is not on this machine)"),
        (["in", "-m", DEMO], {}, "INPUT in (nothing is uploaded, so it is relative to a folder"),
        (["B/in", "-m", "/no/model"], {}, "--model /no/model (it is not on this machine)"),
        (
            ["B/none", "-m", DEMO],
            {"AWS_ENDPOINT_URL": "http://other"},
            "INPUT B/none (--env AWS_ENDPOINT_URL may lead elsewhere)",
        ),
    ],
)
def test_what_cannot_be_checked_here_is_said(
    bucket: str, args: list[str], env: dict[str, str], line: str
) -> None:
    args = [arg.replace("B/", f"{bucket}/") for arg in args]
    lines = checked(*args, "-o", f"{bucket}/new", env=env)
    assert lines[0].startswith("not checked: " + line.replace("B/", f"{bucket}/"))


def test_a_local_input_of_this_machine_is_said_to_be_needed_on_all_nodes(
    bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "1.dcm").write_bytes(b"1")
    [line] = checked(str(tmp_path), "-o", f"{bucket}/new", "-m", DEMO)
    assert (
        line == f"not checked: INPUT {tmp_path} (it is on this machine; all nodes must have it too)"
    )


def test_storage_that_refuses_this_machine_is_no_reason_to_refuse_the_job(
    bucket: str, s3: S3Server
) -> None:
    s3.fault = lambda environ: ("403 Forbidden", "InvalidAccessKeyId")
    try:
        lines = checked(f"{bucket}/in", "-o", f"{bucket}/new", "-m", DEMO)
    finally:
        s3.fault = None
    assert len(lines) == 2
    assert lines[0].startswith(f"not checked: INPUT {bucket}/in (the access key is not known")
    assert lines[1].startswith(f"not checked: --output {bucket}/new (")


def test_an_out_of_another_run_is_refused(bucket: str) -> None:
    out = f"{bucket}/begun"
    planned = ScoreJob(inputs=(), out=out, source=open_source(DEMO), device=CPU)
    store.put(f"{out}/predictions/1.parquet", b"1")
    store.put(f"{out}/private/run.json", json.dumps({KEY: planned.identity.as_json()}).encode())
    args = [f"{bucket}/in", "-o", out, "-m", DEMO]
    assert checked(*args) == []
    with pytest.raises(ResumeError, match=r"holds another job's results .*ranked_boxes"):
        checked(*args, "--set", "ranked_boxes=true")
    with pytest.raises(ResumeError, match="holds scores in float32 on "):
        checked(*args, "--device", "gpu")


def test_places_of_training_and_evaluation_are_checked(bucket: str) -> None:
    args = ["--data", f"{bucket}/in", "-o", f"{bucket}/new"]
    assert checked(*args, job="train-detector") == []
    with pytest.raises(InputError, match=f"{bucket}/split.txt: there is nothing"):
        checked(*args, "--split", f"{bucket}/split.txt", job="train-classifier")
    with pytest.raises(InputError, match=f"{bucket}/labels.csv: there is nothing"):
        checked(f"{bucket}/in", "--labels", f"{bucket}/labels.csv", job="evaluate")
    with pytest.raises(ConfigError, match="epochs"):
        checked(*args, "--set", "optim.epochs=-1", job="train-detector")


def test_arguments_of_another_script_are_its_own(tmp_path: Path) -> None:
    assert checked("here", "-o", "/out", job="own.py", folder=tmp_path) == []
