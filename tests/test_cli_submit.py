"""`cctmn submit` without a cluster: what is refused, what travels, how a log is shown."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cctmn.cli import submit as command
from cctmn.errors import ConfigError
from cctmn.submit import Order, address_of, base_id, out_of, runtime_env
from tests.conftest import REPO
from tests.test_cli import call, one_line


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["submit"], 2, "give a SCRIPT"),
        (["submit", "jobs/score.py", "--follow", "x"], 2, "give a SCRIPT"),
        (["submit", "--env", "A", "jobs/score.py"], 2, "write it as KEY=VALUE"),
        (["submit", "--address", "ray://h:1", "jobs/score.py"], 2, "not a dashboard"),
        (["submit", "--address", "127.0.0.1:1", "jobs/score.py"], 4, "127.0.0.1:1"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    args: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    began = time.monotonic()
    one_line(call(*args), code=code, said=said)
    assert time.monotonic() - began < 10


def test_the_id_comes_from_the_output() -> None:
    ids = {
        base_id(["in", *words])
        for words in (["-o", "s3://b/out"], ["--out", "s3://b/out/"], ["-os3://b/out"])
    }
    assert len(ids) == 1
    assert base_id(["in", "-o", "s3://b/other"]) not in ids
    assert base_id(["in"]) != base_id(["in"])  # without an output none is in the way
    assert out_of(["x", "--", "-o", "s3://no"]) is None
    with pytest.raises(ConfigError, match="goes away with it"):
        base_id(["in", "-o", "here"])


def test_endpoint_and_region_travel_and_keys_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@host")
    monkeypatch.chdir(REPO)
    env, script = runtime_env(Order("jobs/score.py", env={"A": "b"}))
    assert script == "jobs/score.py"
    assert (env["env_vars"]["AWS_REGION"], env["env_vars"]["A"]) == ("eu-north-1", "b")
    assert "secret" not in json.dumps(env)
    assert Path(env["working_dir"]) == REPO
    assert {".git", ".venv"} <= set(env["excludes"])
    env, _ = runtime_env(Order("jobs/score.py", upload=False))
    assert "working_dir" not in env


def test_the_address_is_of_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert address_of(None) == "http://127.0.0.1:8265"
    assert address_of("head:8265") == "http://head:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    assert address_of(None) == "http://other:1"


def test_a_log_is_shown_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    module = sys.modules["cctmn.cli.submit"]
    assert command is module.submit
    line = json.dumps({"time": "t", "level": "info", "run": "r", "text": "12/20  60 %"})
    shown = module._Shown(err=False)
    shown(line[:9])
    shown(line[9:] + "\nplain\nlast")
    shown.close()
    assert capsys.readouterr().out == f"{line}\nplain\nlast\n"
    assert module._text_of(line) == "12/20  60 %"
    assert module._text_of("plain") == "plain"
    assert module._text_of("[1]") == "[1]"
