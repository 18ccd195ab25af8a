"""Run the command in the process of the test: without a new Python, and on the Ray it shares."""

from __future__ import annotations

import subprocess

from click.testing import CliRunner

from cctmn.cli import cli, main


def one_line(done: subprocess.CompletedProcess[str], *, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def call(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command, and return what a process would: its exit code and what it printed."""
    runner = CliRunner()
    words = [str(a) for a in args]

    def run() -> None:
        cli(words, standalone_mode=False)

    with runner.isolation() as streams:
        code = 0
        try:
            main(run)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = (stream.getvalue().decode() for stream in streams[:2])
    return subprocess.CompletedProcess(words, code, out, err)
