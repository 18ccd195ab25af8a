"""`cctmn submit` of a job by its name, without a checkout, and a head that dies under a job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cctmn import embedded, tables
from cctmn.cli import main
from cctmn.dashboard import MODE, TOKEN
from cctmn.errors import EXIT_REFUSED
from cctmn.phantom import layouts as phantom
from cctmn.submit import Jobs, Order
from tests.cluster_nodes.conftest import Submit, ended
from tests.cluster_nodes.nodes import Nodes
from tests.conftest import REPO, S3Server

pytestmark = pytest.mark.slow

STUDY = "s3://named/in"


@pytest.fixture(scope="module")
def study(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A synthetic study on S3; the number of slices."""
    s3.bucket("named")
    path = tmp_path_factory.mktemp("study") / "study.zip"
    phantom.write_archive(path, patients=2, slices=3, seed=4)
    s3.upload("named", "in/study.zip", path.read_bytes())
    return 6


def test_a_job_runs_by_its_name_from_the_installed_package_and_is_listed(
    submit: Submit, study: int, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(
        REPO / "cctmn", installed / "cctmn", ignore=shutil.ignore_patterns("__pycache__")
    )
    entry = installed / "cctmn" / "cli" / "__main__.py"
    entry.write_text(entry.read_text().replace("main()", "print('the copy'); main()"))
    out = "s3://named/out"
    args = ["--", STUDY, "-o", out, "-m", "cctmn:demo"]
    job = submit("score", *args, cwd=tmp_path, PYTHONPATH=str(installed))
    output, talk = ended(job)
    assert "the package as it is installed here" in talk
    assert "not checked" not in talk
    assert "the copy" in output
    assert f"{study} slices = {study} ok" in output
    assert len(list(tables.rows(f"{out}/predictions"))) == study
    listed, _ = ended(submit("--list", "--json", cwd=tmp_path))
    first = json.loads(listed)[0]
    assert (first["out"], first["status"]) == (out, "SUCCEEDED")
    assert first["started"] < first["ended"]


def test_a_job_whose_input_is_missing_is_not_sent(submit: Submit, study: int) -> None:
    job = submit("score", "--", "s3://named/none", "-o", "s3://named/no", "-m", "cctmn:demo")
    _, talk = ended(job, 2)
    assert (
        talk == "error: s3://named/none: there is nothing; check the name of the object or prefix\n"
    )
    listed, _ = ended(submit("--list"))
    assert "s3://named/no" not in listed


# Ray's client passes an argument that aiohttp is about to change.
@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_a_head_that_dies_under_a_followed_job_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cctmn.submit.LOST_S", 3.0)
    for name in ("RAY_API_SERVER_ADDRESS", MODE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    script = tmp_path / "mine.py"
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    heads = Nodes({})
    monkeypatch.setenv(TOKEN, heads.token)
    seen: list[str] = []

    def kill_the_head(text: str) -> None:
        seen.append(text)
        if "begun" in "".join(seen):
            heads.head.kill()

    def follow() -> None:
        jobs = Jobs(heads.address)
        name = jobs.submit(Order(str(script)), write=lambda line: None)
        jobs.follow(name, write=kill_the_head)

    try:
        with pytest.raises(SystemExit) as end:
            main(follow)
    finally:
        heads.close()
        monkeypatch.undo()
        embedded.read_environment_again()
    assert end.value.code == EXIT_REFUSED
    assert "begun" in "".join(seen)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {heads.address}: the head of the cluster does not answer any more"
    )
    assert "is safe in OUT: submit it again to resume" in line
