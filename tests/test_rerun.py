"""The chain of the full-count rerun on a small split: names, labels, scores, figures, report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rerun import rerun

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_the_chain_loses_and_doubles_nothing(cluster: str, tmp_path: Path) -> None:
    lines = []
    for patient in range(30):
        prefix, label = (("Normal", 0), ("CP", 1), ("NCP", 2))[patient % 3]
        for number in range(6 + patient % 5):
            name = f"{prefix}_{patient}_{patient + 900}_{number:04d}.png"
            lines.append(f"{name} {label} 0 0 64 64")
    (tmp_path / "split.txt").write_text("\n".join(lines))
    (tmp_path / "list.txt").write_text("\n".join(line.split()[0] for line in lines[::7]))
    output: list[str] = []
    metrics = rerun(
        tmp_path / "split.txt",
        tmp_path / "rerun",
        exclude=tmp_path / "list.txt",
        resamples=200,
        report=output.append,
    )
    assert metrics["accounting"]["evaluated"] == len(lines) - len(lines[::7])
    assert 0.5 < metrics["metrics"]["slice.accuracy"]["value"] < 1
    assert (tmp_path / "rerun/evaluation/report.html").stat().st_size > 100_000
