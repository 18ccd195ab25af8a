"""cluster/Dockerfile: it copies existing files, checks hashes and is free of hadolint's findings.

`.ci/image` builds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.test_manifests import pinned
from tests.conftest import REPO

DOCKERFILE = REPO / "cluster/Dockerfile"


def steps() -> list[list[str]]:
    """The words of each instruction."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_it_copies_existing_files_that_the_build_may_see() -> None:
    copies = [step for step in steps() if step[0] == "COPY"]
    copied = {source for step in copies for source in step[2:-1]}
    assert all((REPO / source).exists() for source in copied)
    allowed = set((REPO / ".dockerignore").read_text().split("\n"))
    assert {f"!{source}" for source in copied} <= allowed


def test_files_belong_to_rays_user_and_the_image_runs_as_it() -> None:
    assert all(step[1] == "--chown=1000:100" for step in steps() if step[0] == "COPY")
    last = max(index for index, step in enumerate(steps()) if step[0] == "FROM")
    assert steps()[last] == ["FROM", "packages"]
    assert not [step for step in steps()[last:] if step[0] == "USER"]
    packages = [step for step in steps()[:last] if step[0] == "USER"]
    assert packages[0] == ["USER", "1000"]


def test_hashes_are_checked_and_no_tag_moves() -> None:
    text = DOCKERFILE.read_text()
    assert "--require-hashes -r constraints.txt -r constraints-torch.txt" in text
    assert "latest" not in text
    assert pinned("aiohttp-cors")  # the dashboard's: the pins include those of the extra `cluster`


def test_hadolint_finds_nothing() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    hadolint = shutil.which("hadolint", path=path)
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert result.stdout == ""
    assert result.returncode == 0
