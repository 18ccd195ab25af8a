"""`cctmn submit` without a cluster: its refusals, the job's environment, the printed log."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cctmn.cli import cli
from cctmn.errors import ConfigError, PreflightError
from cctmn.submit import Jobs, Order, address_of, base_id, runtime_env
from tests.commands import call, one_line
from tests.conftest import REPO

# The package has the command `submit`, which hides the module of that name.
module = importlib.import_module("cctmn.cli.submit")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["submit"], 2, "give a SCRIPT"),
        (["submit", "jobs/score.py", "--follow", "x"], 2, "give a SCRIPT"),
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
    ],
)
def test_out_is_found_as_the_command_of_the_script_finds_it(
    script: str, args: list[str], out: str | None
) -> None:
    assert module.out_of(script, args, group=cli) == out


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


@pytest.fixture
def silent_dashboard() -> Iterator[str]:
    """A dashboard that says its version and leaves every other request without an answer."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/api/version":
                release.wait(30)
                return
            body = json.dumps({"version": "4", "ray_version": "2.50.0", "ray_commit": ""}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    release.set()
    server.shutdown()
    server.server_close()


def test_a_silent_dashboard_does_not_block_the_command(
    silent_dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout goes through a private method of Ray's client: this fails when Ray changes it."""
    monkeypatch.setattr("cctmn.submit.ANSWER_S", 0.2)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    jobs = Jobs(silent_dashboard)
    with pytest.raises(PreflightError, match=r"does not answer \(ReadTimeout\)"):
        jobs.status("x")
