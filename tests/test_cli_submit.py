"""`cctmn submit` without a cluster: its refusals, the job's environment, lists and logs."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cctmn import embedded, upload
from cctmn.cli import cli, submission
from cctmn.dashboard import MODE, TOKEN, TOKEN_FILE, TOKEN_PATH, address_of
from cctmn.errors import ConfigError, PreflightError
from cctmn.submit import Jobs, Order, base_id, runtime_env
from tests.commands import call, one_line
from tests.conftest import REPO

# The package has the command `submit`, which hides the module of that name.
module = importlib.import_module("cctmn.cli.submit")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["submit"], 2, "give a JOB"),
        (["submit", "jobs/score.py", "--follow", "x"], 2, "give a JOB"),
        (["submit", "score", "--list"], 2, "give a JOB"),
        (["submit", "score", "--", "--sett", "a=b"], 2, "see `cctmn score --help`"),
        (["submit", "train-detector", "--", "-o", "/x"], 2, "see `cctmn train detector --help`"),
        (["submit", "--env", "A", "jobs/score.py"], 2, "write it as KEY=VALUE"),
        (["submit", "--address", "ray://h:1", "jobs/score.py"], 2, "not a dashboard"),
        (["submit", "--address", "127.0.0.1:1", "jobs/score.py"], 4, "127.0.0.1:1"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    args: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    one_line(call(*args), code=code, message=message)


@pytest.mark.parametrize(
    ("script", "args", "out"),
    [
        ("jobs/score.py", ["in", "-o", "s3://b/out"], "s3://b/out"),
        ("jobs/score.py", ["in", "--out", "s3://b/out/", "-m", "-o"], "s3://b/out/"),
        ("jobs/score.py", ["in", "-qos3://b/out"], "s3://b/out"),
        ("jobs/score.py", ["--set", "-o", "in"], None),
        ("jobs/score.py", ["x", "--", "-o", "s3://no"], None),
        ("jobs/score.py", [], None),
        ("jobs/train_detector.py", ["--data", "x", "-o", "/out"], "/out"),
        ("mine/own.py", ["--steps", "3", "-q", "--out=/out", "x"], "/out"),
        ("mine/own.py", ["--steps", "3"], None),
        ("score", ["in", "-m", "m", "-o", "s3://b/out"], "s3://b/out"),
        ("train-detector", ["--data", "x", "-o", "/out"], "/out"),
        ("train_classifier", ["--data", "x", "-o", "/out"], "/out"),
    ],
)
def test_out_is_found_as_the_command_of_the_script_finds_it(
    script: str, args: list[str], out: str | None
) -> None:
    assert submission.read(script, args, group=cli).out == out


def test_the_id_comes_from_out() -> None:
    assert base_id("s3://b/out") == base_id("s3://b/out/") != base_id("s3://b/other")
    assert base_id("/out") == base_id("file:///out")
    # Jobs without OUT do not stand in each other's way.
    assert base_id(None) != base_id(None)
    with pytest.raises(ConfigError, match="OUT here: a relative path is lost"):
        base_id("here")


def test_endpoint_and_region_travel_and_keys_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@host")
    env = runtime_env(Order("jobs/score.py", env={"A": "b"}), folder="/here")
    assert (env["env_vars"]["AWS_REGION"], env["env_vars"]["A"]) == ("eu-north-1", "b")
    assert "secret" not in json.dumps(env)
    assert env["working_dir"] == "/here"
    assert "working_dir" not in runtime_env(Order("jobs/score.py", upload=False), folder=None)


def test_the_address_is_of_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert address_of(None) == "http://127.0.0.1:8265"
    assert address_of("head:8265") == "http://head:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    assert address_of(None) == "http://other:1"


def test_a_log_is_printed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"time": "t", "level": "info", "run": "r", "text": "12/20  60 %"})
    printer = module._LogPrinter(err=False)
    printer(line[:9])
    printer(line[9:] + "\nplain\nlast")
    printer.close()
    assert capsys.readouterr().out == f"{line}\nplain\nlast\n"
    assert module._text_of(line) == "12/20  60 %"
    assert module._text_of("plain") == "plain"
    assert module._text_of("[1]") == "[1]"


@pytest.mark.parametrize(
    ("entrypoint", "out"),
    [
        ("python -m cctmn.cli score --address auto in -o s3://b/out", "s3://b/out"),
        ("python -m cctmn.cli train detector --address auto --data x -o /out", "/out"),
        ("python jobs/score.py in -o 's3://b/o ut'", "s3://b/o ut"),
        ("/opt/bin/cctmn evaluate s3://b/out --labels x", None),
        ("python mine.py --out=/out", "/out"),
        ("cctmn", None),
        ("sh -c 'a", None),
        ("sleep 3", None),
    ],
)
def test_out_of_a_listed_job_is_that_of_its_command_line(entrypoint: str, out: str | None) -> None:
    assert submission.out_of(entrypoint, group=cli) == out


class Dashboard:
    """A stand-in for Ray's: its version, a token if it wants one, and a list of jobs."""

    def __init__(self) -> None:
        self.token, self.jobs, self.silent = "", list[dict[str, Any]](), threading.Event()
        self.release = threading.Event()
        self.posts: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if outer.token and self.headers["Authorization"] != f"Bearer {outer.token}":
                    given = "Authorization" in self.headers
                    self.answer({}, status=403 if given else 401)
                elif self.path == "/api/version":
                    self.answer({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})
                elif outer.silent.is_set():
                    outer.release.wait(30)
                else:
                    self.answer(outer.jobs)

            def do_POST(self) -> None:
                outer.posts.append(self.path)
                self.answer({})

            def answer(self, value: object, *, status: int = 200) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def job(name: str, status: str, *, start_s: float, end_s: float | None = None) -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": status,
        "entrypoint": f"python -m cctmn.cli score --address auto in -o s3://b/{name}",
        "start_time": int(start_s * 1000),
        "end_time": end_s and int(end_s * 1000),
    }


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A dashboard, and an environment of which no variable of Ray remains afterwards."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", MODE, TOKEN, TOKEN_PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    one = Dashboard()
    yield one
    one.close()
    monkeypatch.undo()
    embedded.read_environment_again()


def test_a_silent_dashboard_does_not_block_the_command(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout goes through a private method of Ray's client: this fails when Ray changes it."""
    dashboard.silent.set()
    monkeypatch.setattr("cctmn.submit.ANSWER_S", 0.2)
    jobs = Jobs(dashboard.address)
    with pytest.raises(PreflightError, match=r"does not answer \(ReadTimeout\)"):
        jobs.status("x")


def place_token(place: str, token: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == TOKEN:
        monkeypatch.setenv(TOKEN, token)
        return
    path = home / (TOKEN_FILE if place == TOKEN_FILE else "elsewhere")
    path.parent.mkdir(exist_ok=True)
    path.write_text(token + "\n")
    if place == TOKEN_PATH:
        monkeypatch.setenv(TOKEN_PATH, str(path))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_token_is_the_first_of_variable_named_file_and_file_in_the_home_folder(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    dashboard.token = "1" * 64
    for number, place in enumerate((TOKEN, TOKEN_PATH, TOKEN_FILE)):
        if number >= first:
            place_token(place, ("1" if number == first else "2") * 64, tmp_path, monkeypatch)
    assert Jobs(dashboard.address).listed() == []


@pytest.mark.parametrize(
    ("place", "named"),
    [(TOKEN, TOKEN), (TOKEN_PATH, f"{TOKEN_PATH}=/"), (TOKEN_FILE, f"~/{TOKEN_FILE}")],
)
def test_the_error_of_a_rejected_token_names_its_place(
    dashboard: Dashboard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    named: str,
) -> None:
    dashboard.token = "1" * 64
    place_token(place, "2" * 64, tmp_path, monkeypatch)
    done = call("submit", "--address", dashboard.address, "--list")
    one_line(done, code=4, message=f"rejects the token of {named}")


def test_without_a_token_the_error_names_where_it_is_looked_for(dashboard: Dashboard) -> None:
    dashboard.token = "1" * 64
    done = call("submit", "--address", dashboard.address, "--list")
    one_line(done, code=4, message=f"none in {TOKEN}, {TOKEN_PATH} or ~/{TOKEN_FILE}; ")


def test_a_mode_that_sends_no_token_is_named(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token = "1" * 64
    monkeypatch.setenv(TOKEN, "1" * 64)
    monkeypatch.setenv(MODE, "disabled")
    done = call("submit", "--address", dashboard.address, "--list")
    one_line(done, code=4, message=f"{MODE}=disabled none is sent; unset")


def test_a_token_path_without_a_token_is_refused(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.token = "1" * 64
    monkeypatch.setenv(TOKEN_PATH, str(tmp_path / "none"))
    done = call("submit", "--address", dashboard.address, "--list")
    one_line(done, code=2, message=f"{TOKEN_PATH}: no file with a token; ")


def test_jobs_are_listed_newest_first_with_their_out(dashboard: Dashboard) -> None:
    driver = job("x", "RUNNING", start_s=5) | {"type": "DRIVER", "submission_id": None}
    dashboard.jobs = [
        job("older", "SUCCEEDED", start_s=1_000_000_000, end_s=1_000_000_060),
        driver,
        job("newer", "RUNNING", start_s=1_000_000_100),
    ]
    done = call("submit", "--address", dashboard.address, "--list")
    assert done.stdout.splitlines() == [
        "id     status     started               ended                 OUT",
        "newer  RUNNING    2001-09-09T01:48:20Z  -                     s3://b/newer",
        "older  SUCCEEDED  2001-09-09T01:46:40Z  2001-09-09T01:47:40Z  s3://b/older",
    ]
    done = call("submit", "--address", dashboard.address, "--list", "--json")
    assert json.loads(done.stdout)[0] == {
        "id": "newer",
        "status": "RUNNING",
        "out": "s3://b/newer",
        "started": "2001-09-09T01:48:20Z",
        "ended": None,
    }


def test_a_job_with_a_running_one_in_its_out_is_refused_before_anything_is_staged(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "staged", lambda *_: pytest.fail("staged"))
    dashboard.jobs = [job(base_id("s3://b/out"), "RUNNING", start_s=1)]
    done = call("submit", "--address", dashboard.address, "score", "--", "in", "-o", "s3://b/out")
    one_line(done, code=2, message="(RUNNING) writes to it; follow that job")


def test_a_job_that_cannot_succeed_is_not_sent(dashboard: Dashboard) -> None:
    args = ["here", "-o", "s3://b/out", "-m", "cctmn:demo"]
    done = call("submit", "--address", dashboard.address, "score", "--", *args)
    one_line(done, code=2, message="a relative path that the upload does not hold; ")
    assert dashboard.posts == []


class Followed:
    """A stand-in for Ray's client: what each reading of a log and each question for a job gives."""

    def __init__(self, logs: Sequence[str], answers: Sequence[str]) -> None:
        self._logs, self._answers = iter(logs), iter(answers)

    def get_job_info(self, name: str) -> Any:
        status = next(self._answers)
        if status == "unknown":
            raise RuntimeError(f"Request failed with status code 404: {name}")
        if status == "silent":
            raise ConnectionError
        code = 0 if status == "SUCCEEDED" else None
        return SimpleNamespace(status=status, driver_exit_code=code, message="")

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for text in next(self._logs).split("|"):
            if text == "breaks":
                raise RuntimeError("closed with code 1006")
            if text == "hangs":
                await asyncio.Event().wait()
            yield text


@pytest.fixture
def follow(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Follow a job on a stand-in; returns the log and the last status."""
    monkeypatch.setattr("cctmn.submit.PAUSE_S", 0.0)
    monkeypatch.setattr("cctmn.submit.QUIET_S", 0.01)

    def run(*logs: str, answers: Sequence[str], lost_s: float = 60.0) -> list[str]:
        monkeypatch.setattr("cctmn.submit.LOST_S", lost_s)
        jobs, lines = Jobs(dashboard.address), list[str]()
        monkeypatch.setattr(jobs, "_client", Followed(logs, answers))
        status = jobs.follow("x", write=lines.append)
        return [*lines, status.status]

    return run


def test_a_log_goes_on_after_a_broken_connection(follow: Callable[..., list[str]]) -> None:
    answers = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert follow("a|breaks", "a|b", answers=answers) == ["a", "b", "SUCCEEDED"]


def test_a_quiet_log_is_followed_on_while_the_job_is_known(
    follow: Callable[..., list[str]],
) -> None:
    with pytest.raises(PreflightError, match="does not know job x; what"):
        follow("a|hangs", answers=["RUNNING", "RUNNING", "RUNNING", "unknown"])


def test_a_head_that_was_replaced_is_said(follow: Callable[..., list[str]]) -> None:
    with pytest.raises(PreflightError, match=r"replaced.*safe in OUT: submit it again to resume"):
        follow("a|breaks", answers=["RUNNING", "unknown"])


def test_a_head_that_vanishes_without_closing_connections_is_noticed(
    follow: Callable[..., list[str]],
) -> None:
    answers = ["RUNNING", "silent", "silent"]
    with pytest.raises(PreflightError, match=r"not answer any more \(no answer\).*safe in OUT"):
        follow("a|hangs", answers=answers, lost_s=0.0)


def test_a_log_that_cannot_be_read_does_not_hide_how_the_job_ended(
    follow: Callable[..., list[str]],
) -> None:
    assert follow("breaks", answers=["RUNNING", "SUCCEEDED"], lost_s=0.0) == ["SUCCEEDED"]
    with pytest.raises(PreflightError, match="the job still runs; follow it again with --follow x"):
        follow("breaks", answers=["RUNNING", "RUNNING"], lost_s=0.0)


def test_a_head_that_has_just_started_is_asked_again(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cctmn.submit.PAUSE_S", 0.0)
    jobs, asked = Jobs(dashboard.address), list[str]()

    def submit_job(*, submission_id: str, **_: object) -> None:
        asked.append(submission_id)
        if len(asked) < 3:
            raise RuntimeError("No available agent to submit job, please try again later.")

    monkeypatch.setattr(jobs._client, "submit_job", submit_job)
    name = jobs.submit(Order("x.py", upload=False), write=lambda line: None)
    assert asked == [name] * 3
