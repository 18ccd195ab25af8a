"""The commands as a user runs them: exit codes, one-line errors, models, doctor, the demo."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cctmn import store
from cctmn.cli.common import resumable
from cctmn.errors import EXIT_STOPPED, ConfigError
from cctmn.score.doctor import spread
from cctmn.score.run import ScoreJob
from tests.commands import call, one_line
from tests.conftest import REPO, S3Server
from tests.makers import dicom, png, zipped
from tests.processes import end_with_the_test_run

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["score", "nowhere", "-o", "out", "--dry-run"], 2, "no such file"),
        (["score", ".", "-o", "out"], 2, "give -m MODEL"),
        (["score", ".", "-o", "out", "-m", "nomodel"], 4, "card.json not found"),
        (["score", ".", "-o", "out", "--set", "batchsize=3"], 2, "no such setting"),
        (["score", ".", "-o", "out", "--config", "none.toml"], 2, "cannot be read"),
        (["score", ".", "-o", "out", "-m", "x.pth"], 4, "models import CHECKPOINT"),
        (["models", "show", "nomodel"], 4, "card.json not found"),
        (["models", "verify", "nomodel"], 4, "card.json not found"),
        (["models", "show", "cctmn:none"], 4, "card.json not found"),
        (["models", "evaluate", "cctmn:demo"], 2, "give --lesions DATA or --slices DATA"),
        (["models", "evaluate", "cctmn:demo", "--slices", "nowhere"], 2, "no such file"),
        (["train", "detector", "--data", ".", "-o", "out", "--preset", "x"], 2, "paper-resnet50"),
        (["train", "detector", "--data", ".", "-o", "out", "--set", "init=none"], 2, "imgs/"),
        (["score", "-o", "out", "-m", "cctmn:demo"], 2, "no INPUT"),
        (["train", "classifier", "--data", ".", "-o", "out"], 2, "give -m MODEL"),
        (["train", "classifier", "--data", ".", "-o", "out", "--set", "optim.lr=-1"], 2, "below 0"),
        (["train", "classifier", "--data", ".", "-o", "out", "--set", "loss=l2"], 2, "bce | cross"),
    ],
)
def test_error_of_the_user_is_one_line(
    args: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_line(call(*args), code=code, message=message)
    assert list(tmp_path.iterdir()) == []


def test_error_of_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint")
    done = call("models", "import", tmp_path / "x.pth", "-o", tmp_path / "m")
    one_line(done, code=4, message="x.pth")


def test_error_of_an_unwritable_output_is_one_line(tmp_path: Path, fresh_model: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    done = call("score", tmp_path / "a.png", "-o", tmp_path / "a.png" / "out", "-m", fresh_model)
    one_line(done, code=4, message="check OUT")


def test_error_of_a_missing_cluster_is_one_line(
    cctmn: Command, tmp_path: Path, fresh_model: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    args = [tmp_path / "a.png", "-o", tmp_path / "out", "-m", fresh_model, "-q"]
    for address in ("127.0.0.1:1", "nonsense"):
        one_line(cctmn("score", *args, "--address", address), code=4, message="no Ray cluster")


def test_device_sets_the_gpus_of_a_scorer(
    tmp_path: Path, fresh_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(job: ScoreJob, **_: object) -> None:
        seen.append(job.settings.gpus)
        raise ConfigError("stop")

    monkeypatch.setattr("cctmn.score.run.score", stop)
    words = ["-i", tmp_path, "--output", tmp_path / "out", "-m", fresh_model]
    for device in ([], ["--device", "cpu"], ["--device", "gpu"]):
        call("score", *words, *device)
    call("score", *words, "--device", "gpu", "--set", "gpus=0.5")
    assert seen == [-1, 0, 1, 0.5]


def test_dry_run_prints_the_plan(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(zipped({"a": png(1), "b": dicom(1), "c": b"text"}))
    message = call("score", tmp_path, "-o", tmp_path / "out", "--dry-run", "-q")
    assert message.stdout.splitlines()[0] == "3 slices: 0 done, 3 to score"
    assert "passed over: not_an_image" in message.stdout
    plan = json.loads(
        call("score", tmp_path, "-o", tmp_path / "out", "--dry-run", "--json", "-q").stdout
    )
    assert plan["containers"] == {"zip": 3}


def test_models_are_shown_and_verified(fresh_model: Path) -> None:
    card = json.loads(call("models", "show", fresh_model, "--json").stdout)
    assert card["kind"] == "classifier"
    assert "backbone: resnet18" in call("models", "show", fresh_model).stdout
    assert "sound" in call("models", "verify", fresh_model).stdout


def test_import_as_classifier_notes_that_it_is_untrained(tmp_path: Path, shared: Path) -> None:
    pth = shared / "reference/segmentation_model_r18t1.pth"
    done = call("models", "import", pth, "-o", tmp_path / "m", "--as-classifier", "--seed", 3)
    assert done.returncode == 0
    assert "module S is untrained (seed 3)" in done.stderr
    card = json.loads(call("models", "show", tmp_path / "m", "--json").stdout)
    assert (card["kind"], card["trained"]) == ("classifier", False)


def test_a_folder_with_other_content_is_not_overwritten(tmp_path: Path, shared: Path) -> None:
    pth = shared / "reference" / "segmentation_model_r18t1.pth"
    out = tmp_path / "model"
    for _ in range(2):  # the same model again is no loss
        assert call("models", "import", pth, "-o", out).returncode == 0
    other = ["models", "import", pth, "--as-classifier", "-o", out]
    one_line(call(*other), code=4, message="holds another model")
    assert call(*other, "--overwrite").returncode == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    phantom = ["phantom", "slices", "--count", 3, "-o", tmp_path / "full"]
    one_line(call(*phantom), code=2, message="is there and not empty; give another OUT")
    assert call(*phantom, "--overwrite").returncode == 0


def test_doctor_checks_a_sample_the_model_and_the_storage(
    tmp_path: Path, fresh_model: Path, s3: S3Server
) -> None:
    s3.bucket("doctor")
    s3.upload("doctor", "z.zip", zipped({"a": png(1), "b": dicom(1), "c": b"text"}))
    out = "s3://doctor/out"
    done = call("doctor", "s3://doctor/z.zip", "-m", fresh_model, "-o", out, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert list(report)[:2] == ["verdict", "problems"]
    assert report["verdict"].startswith("Ready: 3 slices, 2 of 3 sampled slices can be scored; ")
    assert report["input"]["would_be_scored"] == 2
    assert report["input"]["passed_over"]["not_an_image"]["n"] == 1
    assert report["input"]["passed_over"]["not_an_image"]["example"] == "s3://doctor/z.zip::c"
    assert report["model"]["kind"] == "classifier"
    assert report["versions"]["torch"] != "missing"
    assert report["storage"]["s3://doctor/z.zip"] == "listing and reading work"
    assert abs(report["storage"][out].pop("clock_ahead_s")) < 60
    assert report["storage"][out] == {
        "access": "listing, writing, reading and deleting work",
        "conditional_writes": "obeyed",
    }
    assert report["job"]["seconds_per_slice_and_scorer"] > 0
    assert report["job"]["precision"] == "float32"
    assert report["job"]["device_name"]
    assert report["job"]["disk_bytes"] > 0
    assert report["machine"]["cpu_cores"] >= 1
    assert [info.uri for info in store.list_objects("s3://doctor")] == ["s3://doctor/z.zip"]
    text = call("doctor", "s3://doctor").stdout
    assert text.startswith("Ready: 3 slices, ")
    assert "would_be_scored: 2" in text


def test_doctor_says_that_out_cannot_be_written(tmp_path: Path, s3: S3Server) -> None:
    s3.bucket("readonly")
    s3.upload("readonly", "a.png", png(1))
    s3.fault = lambda environ: (
        ("403 Forbidden", "AccessDenied") if environ["REQUEST_METHOD"] == "PUT" else None
    )
    done = call("doctor", "s3://readonly/a.png", "-o", "s3://readonly/out")
    s3.fault = None
    assert done.returncode == 4
    assert "access denied; this role needs s3:PutObject and s3:DeleteObject" in done.stdout
    (tmp_path / "file").write_text("x")
    done = call("doctor", "-o", tmp_path / "file" / "out")
    assert done.returncode == 4
    assert f"{tmp_path / 'file' / 'out'}: cannot be written" in done.stdout


def test_doctor_counts_objects_in_archive_storage(s3: S3Server) -> None:
    s3.bucket("glacier")
    s3.upload("glacier", "a.png", png(1))
    s3.client().put_object(Bucket="glacier", Key="b.png", Body=png(2), StorageClass="GLACIER")
    report = json.loads(call("doctor", "s3://glacier", "--json").stdout)
    assert report["input"]["refused"]["archived"]["n"] == 1


def test_doctor_lists_the_problems_after_the_verdict(tmp_path: Path, s3: S3Server) -> None:
    done = call("doctor", "s3://nobucket/x", "-m", tmp_path, "--json")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert report["verdict"] == "Not ready: 2 problems; see below."
    assert sorted(p.split(":")[0] for p in report["problems"]) == [str(tmp_path), "s3"]
    assert report["storage"]["s3://nobucket/x"].startswith("not reachable: ")


def test_doctor_sees_that_the_disk_is_too_small(
    tmp_path: Path, fresh_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    (tmp_path / "a.png").write_bytes(png(1))
    done = call("doctor", tmp_path / "a.png", "-m", fresh_model, "-o", tmp_path / "new" / "out")
    assert done.returncode == 4
    assert "0 B free; use another OUT" in done.stdout
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("count", [1, 23, 24, 25, 47, 48, 5000])
def test_doctor_samples_evenly(count: int) -> None:
    sample = spread(count, sample=24)
    assert len(sample) == len(set(sample)) == min(count, 24)
    gaps = [b - a for a, b in itertools.pairwise(sample)] or [count]
    assert max(gaps) - min(gaps) <= 1
    assert 0 <= sample[0] < max(gaps)
    assert count - max(gaps) <= sample[-1] < count


@pytest.mark.slow
def test_demo_runs_twice_and_compares_predictions_with_the_truth(
    cluster: str, tmp_path: Path
) -> None:
    done = call("demo", "-o", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "32 slices = 32 ok + 0 passed over + 0 error + 0 pending" in done.stderr
    right = re.search(r"^(\d+) of 32 slices are classified correctly", done.stdout, re.MULTILINE)
    assert right
    assert int(right[1]) >= 25
    assert "not a medical device" in done.stdout
    assert "The worklist, the likeliest sick first:" in done.stdout
    assert len(done.stdout.split("notes\n")[-1].splitlines()) == 4
    assert list((tmp_path / "demo/out/private/report/studies").glob("*.html"))
    report = (tmp_path / "demo/evaluation/report.html").read_text()
    assert "data:image/png" in report
    assert "Few patients" in report
    again = call("demo", "-o", tmp_path / "demo")
    assert again.returncode == 0, again.stderr
    assert "32 slices done, 0 to score" in again.stderr
    assert again.stdout == done.stdout


def test_job_script_runs_on_a_running_cluster(
    fresh_model: Path, s3: S3Server, cluster: str
) -> None:
    """As a job of a Ray cluster runs it: an address, and input and output on S3."""
    s3.bucket("job")
    for n in range(3):
        s3.upload("job", f"in/{n}.png", png(n, side=300))
    words = ["jobs/score.py", "s3://job/in", "-o", "s3://job/out", "-m", str(fresh_model)]
    done = subprocess.run(
        [sys.executable, *words, "--address", cluster, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPO,
        preexec_fn=end_with_the_test_run,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["ok"] == 3


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    """Control characters and marks that reverse a text are shown as escapes."""
    name = "a\x1b]52;c;ZXZpbA==\x07\u202egnp.dcm"
    done = call("score", tmp_path / name, "-o", tmp_path / "out", "-m", "cctmn:demo")
    assert "\x1b" not in done.stderr
    assert r"a\x1b]52;c;ZXZpbA==\x07\u202egnp.dcm" in done.stderr


def test_a_second_sigterm_does_not_cut_short_the_end() -> None:
    ended = False
    with pytest.raises(SystemExit) as stopped, resumable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ended = True
    assert ended
    assert stopped.value.code == EXIT_STOPPED
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
