"""Watching a run: the metrics endpoint, JSON lines off a terminal, no patient in any of them."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from cctmn.config import ScoreConfig
from cctmn.reporter import run_id
from cctmn.score import run
from tests import stand_in_command
from tests.conftest import REPO, SharedRay
from tests.makers import dicom, png, stand_in, zipped

pytestmark = pytest.mark.ray

CANARIES = ("Mustermann", "Erika", "MRN-4711", "Wohlfahrt")


def planted(seed: int) -> bytes:
    """A DICOM slice whose header names a patient."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(seed)))
    dataset.PatientName, dataset.PatientID = "Mustermann^Erika", "MRN-4711"
    dataset.InstitutionName = "Wohlfahrt"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names in headers, in file and folder names, in an archive, and in what is broken."""
    folder = tmp_path_factory.mktemp("watch") / "in" / "Mustermann_Erika"
    folder.mkdir(parents=True)
    (folder / "MRN-4711_1.dcm").write_bytes(planted(1))
    (folder / "MRN-4711_2.dcm").write_bytes(planted(2)[:-4000])
    for n in range(6):
        (folder / f"Wohlfahrt_{n}.png").write_bytes(png(n))
    members = {"Mustermann/a.dcm": planted(3), "MRN-4711.txt": b"Mustermann"}
    (folder / "Erika.zip").write_bytes(zipped(members))
    return folder.parent


@pytest.fixture(scope="module")
def port(shared_ray: SharedRay) -> Iterator[int]:
    """The metrics port of a Ray node of this module."""
    import ray

    shared_ray.stop()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _metrics_export_port=number,
        _system_config={"metrics_report_interval_ms": 1000},  # instead of 10 s
        log_to_driver=False,
    )
    yield number
    ray.shutdown()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return str(response.read().decode())


def values(text: str, name: str) -> dict[str, float]:
    """Value by the tags that are ours, of the samples of one name and this run."""
    samples = {}
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and f'run="{run_id()}"' in line:
            tags, value = line[len(name) + 1 :].rsplit("} ", 1)
            ours = [t for t in tags.split(",") if t.startswith(("outcome=", "code=", "stage="))]
            key = ",".join(ours).replace('"', "")
            samples[key] = samples.get(key, 0) + float(value)
    return samples


def test_counters_are_scraped_and_name_nobody(port: int, archive: Path, tmp_path: Path) -> None:
    import ray

    output: list[str] = []
    job = run.ScoreJob(
        [str(archive)],
        out=str(tmp_path / "out"),
        source=stand_in(sleep_s=0.5),
        settings=ScoreConfig(actors=1, block_rows=4),
    )
    summary = run.score(job, report=lambda text, *, transient=False, names="": output.append(text))
    assert (summary.counts.ok, summary.counts.passed_over, summary.counts.error) == (8, 1, 1)
    expected = {"stage=fetch": 10, "stage=decode": 10, "stage=score": 8}
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline:  # workers report every few seconds
        text = scrape(port)
        if values(text, "ray_cctmn_stage_ms_count") == expected:
            break
        time.sleep(1)
    outcomes = {"outcome=ok": 8, "outcome=passed_over": 1, "outcome=error": 1}
    assert values(text, "ray_cctmn_slices_total") == outcomes
    assert sum(values(text, "ray_cctmn_error_rows_total").values()) == 1
    assert values(text, "ray_cctmn_stage_ms_count") == expected
    size = sum(f.stat().st_size for f in archive.rglob("*") if f.is_file())
    assert values(text, "ray_cctmn_fetched_bytes_total")[""] == pytest.approx(size, rel=0.3)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    files = [f for f in (session / "logs").rglob("*") if f.is_file()]
    handed_on = [
        f for f in (tmp_path / "out").rglob("*") if f.is_file() and "private" not in f.parts
    ]
    assert files
    assert handed_on
    seen = {"metrics": text, "talk": "\n".join(output)}
    seen |= {str(f): f.read_bytes().decode("latin-1") for f in [*files, *handed_on]}
    leaks = [(place, name) for place, text in seen.items() for name in CANARIES if name in text]
    assert not leaks


def test_a_block_of_errors_alone_is_counted(port: int, tmp_path: Path) -> None:
    """Nothing was read, and Ray refuses to count nothing."""
    (tmp_path / "in").mkdir()
    for n in range(3):
        (tmp_path / "in" / f"{n}.txt").write_bytes(b"\0no image")
    job = run.ScoreJob(
        [str(tmp_path / "in")],
        out=str(tmp_path / "out"),
        source=stand_in(),
        settings=ScoreConfig(actors=1),
    )
    assert run.score(job).counts.codes == {"unsupported_format": 3}


def test_off_a_terminal_each_line_is_json_with_the_run(
    port: int, archive: Path, tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    env = stand_in_command.environment(sleep_s=0)
    del env["CCTMN_LOG"]
    words = ["score", str(archive), "-o", str(tmp_path / "out"), "--address", address]
    done = subprocess.run(
        [sys.executable, "-m", "tests.stand_in_command", *words, "-m", "any", "--limit", "1"],
        capture_output=True,
        text=True,
        env=env | {"CCTMN_RUN_ID": "run-of-test"},
        cwd=REPO,
        timeout=200,
    )
    assert done.returncode in (0, 3), done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) > 3
    assert {line["run"] for line in lines} == {"run-of-test"}
    assert all(line.keys() == {"time", "level", "run", "text"} for line in lines)
    assert any("slices = " in line["text"] for line in lines)
    output = json.loads((tmp_path / "out/manifest.json").read_text())
    assert output["last_run"]["id"] == "run-of-test"
    quiet = done.stderr.replace(str(archive), "")  # the person's own words
    assert not [name for name in CANARIES if name in quiet]
    command = [sys.executable, "-m", "cctmn.cli", *words, "-m", str(tmp_path / "none")]
    refused = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPO)
    [line] = refused.stderr.splitlines()
    assert (refused.returncode, json.loads(line)["level"]) == (4, "error")
    assert "card.json not found" in json.loads(line)["text"]


def test_names_are_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cctmn.cli.common import TerminalReporter

    TerminalReporter(quiet=False)("2 labels without a prediction", names="Mustermann.png")
    assert "Mustermann" in capsys.readouterr().err  # CCTMN_LOG=text, as on a terminal
    monkeypatch.delenv("CCTMN_LOG")
    TerminalReporter(quiet=False)("2 labels without a prediction", names="Mustermann.png")
    output = capsys.readouterr().err
    assert json.loads(output)["text"] == "2 labels without a prediction"
