"""The command, killed hard at any moment, and run again.

It is killed in six ways with a stand-in for the network, which plays no part in that; the job on a
full disk has a real network, whose rows are the same after the interruption.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cctmn.phantom import layouts as phantom
from cctmn.score import models
from tests import stand_in_command
from tests.commands import call
from tests.conftest import REPO
from tests.makers import stand_in
from tests.processes import end_with_the_test_run
from tests.score.conftest import manifest, predictions, results

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PATIENTS, SLICES = 4, 8
TIMEOUT_S = 120
MARK = "CCTMN_TEST_STARTED_BY"  # in the environment of what is started here
SLEEP_S = 0.25  # per slice of the stand-in, so that a job can be killed before its end
PLAIN = ("--set", "block_rows=2", "--set", "actors=1")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.zip"
    phantom.write_archive(path, patients=PATIENTS, slices=SLICES, seed=3)
    return path


def started(module: str, study: Path, out: Path, *, model: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, "score", study, "-o", out, "-m", model, *PLAIN]
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=REPO,
        env=stand_in_command.environment(sleep_s=SLEEP_S) | {MARK: str(os.getpid())},
        preexec_fn=end_with_the_test_run,
    )


def undisturbed(study: Path, out: Path, *, model: Path | str) -> Path:
    """Return the output of a run that nothing disturbs."""
    done = call("score", study, "-o", out, "-m", model, "-q", *PLAIN)
    assert done.returncode == 0, done.stderr
    return out


def files(out: Path) -> int:
    return len(list(out.glob("predictions/*.parquet")))


def wait_for(true: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < end
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)


def ray_processes() -> list[psutil.Process]:
    """Those of the runs started here: others may use Ray on this machine."""
    rows = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            ours = process.environ().get(MARK) == str(os.getpid())
        except psutil.Error:
            continue
        if ours and ("ray::" in line or "raylet" in line or "gcs_server" in line):
            rows.append(process)
    return rows


def equal_rows(out: Path, whole: Path) -> None:
    ours, theirs = predictions(out), predictions(whole)
    assert ours.keys() == theirs.keys()
    assert len(ours) == PATIENTS * SLICES
    for name, row in theirs.items():
        assert results(ours[name]) == results(row)


Stop = Callable[[subprocess.Popen[str]], None]


def kill_all(run: subprocess.Popen[str]) -> None:
    os.killpg(run.pid, signal.SIGKILL)


def kill_server(name: str) -> Stop:
    def kill(run: subprocess.Popen[str]) -> None:
        for process in psutil.Process(run.pid).children(recursive=True):
            if process.name() == name:
                process.kill()

    return kill


RAY_DIED = "error: Ray has died on this machine"
INTERRUPTED = "Interrupted. Run the same command again to resume"
# Moment, what happens, exit code, what the last line begins with.
ENDS = (
    ("indexing", kill_all, -signal.SIGKILL, ""),
    ("scoring", kill_all, -signal.SIGKILL, ""),
    ("scoring", kill_server("raylet"), 4, RAY_DIED),
    ("scoring", kill_server("gcs_server"), 4, RAY_DIED),
    # Ctrl-C goes to the whole group, as a terminal sends it; SIGTERM to the process alone
    ("scoring", lambda run: os.killpg(run.pid, signal.SIGINT), 130, INTERRUPTED),
    ("scoring", lambda run: run.send_signal(signal.SIGTERM), 130, INTERRUPTED),
)


def test_ended_in_six_ways_then_run_again(
    cluster: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(models, "open_source", lambda _, **__: stand_in())
    whole = undisturbed(study, tmp_path / "whole", model="any")
    before = {process.pid for process in ray_processes()}

    for moment, stop, code, line in ENDS:
        held = files(out)
        true = {
            "indexing": lambda: (out / "private").exists(),
            "scoring": lambda held=held: files(out) > held,
        }[moment]
        run = started("tests.stand_in_command", study, out, model="any")
        wait_for(true, run)
        stop(run)
        output, _ = run.communicate(timeout=TIMEOUT_S)
        assert run.returncode == code, output
        assert (output.splitlines() or [""])[-1].startswith(line)
        assert "Traceback" not in output
        # Ray's own processes see that their driver is gone; none may write after that
        left = files(out)
        assert (left > held) == (moment == "scoring")
        deadline = time.monotonic() + 30
        while {process.pid for process in ray_processes()} - before:
            assert time.monotonic() < deadline, "Ray outlived its driver"
            time.sleep(0.2)
        assert files(out) <= left + 1
    # the last run loses its scorer, and goes on with another
    held = files(out)
    run = started("tests.stand_in_command", study, out, model="any")
    wait_for(lambda: files(out) > held, run)
    scorers = [p for p in ray_processes() if "_ScoreBlock" in " ".join(p.cmdline())]
    assert scorers
    for scorer in scorers:
        scorer.kill()
    output, _ = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, output
    assert manifest(out)["counts"] == manifest(whole)["counts"]
    assert manifest(out)["last_run"]["slices"] < PATIENTS * SLICES
    equal_rows(out, whole)


def test_a_full_disk_ends_the_job_and_room_lets_it_go_on(
    cluster: str, study: Path, fresh_model: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk, and not in every container")
    try:
        out = small / "out"
        whole = undisturbed(study, tmp_path / "whole", model=fresh_model)
        run = started("cctmn.cli", study, out, model=fresh_model)
        output, _ = run.communicate(timeout=TIMEOUT_S)
        assert run.returncode == 4, output
        last = output.splitlines()[-1]
        assert last.startswith(f"error: {out}")
        assert "No space left on device); free some space" in last
        assert 0 < files(out) < files(whole)
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        run = started("cctmn.cli", study, out, model=fresh_model)
        output, _ = run.communicate(timeout=TIMEOUT_S)
        assert run.returncode == 0, output
        equal_rows(out, whole)
    finally:
        subprocess.run(["umount", str(small)], check=True)
