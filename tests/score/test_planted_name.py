"""A name that is planted in every place stays out of what a job says, logs and shows to others."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pydicom
import pytest

from tests import stand_in_command
from tests.commands import call
from tests.conftest import REPO, S3Server
from tests.makers import dicom, png, zipped
from tests.processes import end_with_the_test_run

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NAME = "Mustermann"
BUCKET = "planted"
SLICES = 26
TIMEOUT_S = 120


def planted(seed: int) -> bytes:
    """A DICOM slice whose header names a patient."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(seed)))
    dataset.PatientName = f"{NAME}^Erika"
    dataset.Manufacturer = f"SIEMENS {NAME}"
    dataset.ManufacturerModelName = f"Sensation {NAME}"
    dataset.ConvolutionKernel = NAME
    dataset.ImageType = ["ORIGINAL", "PRIMARY", NAME]
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def planted_input(s3: S3Server) -> str:
    """Keys, a member of an archive, headers and what is broken, all with the name."""
    s3.bucket(BUCKET)
    for n in range(SLICES - 3):
        s3.upload(BUCKET, f"{NAME}/{NAME}_{n}.png", png(n))
    s3.upload(BUCKET, f"{NAME}/{NAME}.dcm", planted(1))
    s3.upload(BUCKET, f"{NAME}/{NAME}_broken.dcm", planted(2)[:-4000])
    s3.upload(BUCKET, f"{NAME}/{NAME}.zip", zipped({f"{NAME}/a.dcm": planted(3)}))
    return f"s3://{BUCKET}/{NAME}"


@pytest.fixture
def session() -> Iterator[Path]:
    """A folder for what Ray writes; the path of its sockets must be short."""
    folder = Path("/tmp") / f"planted-{os.getpid()}"
    folder.mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def written_so_far(session: Path) -> dict[str, bytes]:
    """The files of Ray in this folder, which it removes at its end."""
    contents = {}
    # os.walk passes over folders that have just been removed; Path.rglob fails there.
    for folder, _, names in os.walk(session):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # it has just been removed, or is a socket
                contents[str(path.relative_to(session))] = path.read_bytes()
    return contents


def workers(run: subprocess.Popen[str]) -> list[psutil.Process]:
    processes = psutil.Process(run.pid).children(recursive=True)
    return [p for p in processes if "_ScoreBlock" in " ".join(p.cmdline())]


def test_a_planted_name_is_in_no_line_even_if_a_worker_dies(
    planted_input: str, session: Path, tmp_path: Path
) -> None:
    """stdout is the manifest alone. The folder OUT has the name too, as its user chose."""
    out = tmp_path / NAME / "out"
    command = [sys.executable, "-m", "tests.stand_in_command", "score", planted_input, "--json"]
    command += ["-o", str(out), "-m", "any", "--set", "actors=1", "--set", "block_rows=2"]
    command += ["--max-error-rate", "1"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
        env=stand_in_command.environment(sleep_s=0.25)
        | {"RAY_TMPDIR": str(session), "CCTMN_LOG": "json"},
        preexec_fn=end_with_the_test_run,
    ) as run:
        end = time.monotonic() + TIMEOUT_S
        while not (list(out.glob("predictions/*.parquet")) and workers(run)):
            assert run.poll() is None, "the run ended before a worker could be killed"
            assert time.monotonic() < end
            time.sleep(0.05)
        workers(run)[0].send_signal(signal.SIGKILL)
        seen: dict[str, bytes] = {}
        while run.poll() is None and time.monotonic() < end:
            seen |= written_so_far(session)
            time.sleep(0.2)
        stdout, stderr = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, stderr
    counts = json.loads(stdout)["counts"]
    assert (counts["inventory"], counts["error"], counts["pending"]) == (SLICES, 1, 0)
    assert [json.loads(line)["level"] for line in stderr.splitlines()]
    assert any("raylet" in name for name in seen)
    shown = seen | {"stdout": stdout.encode(), "stderr": stderr.encode()}
    shown |= {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "private" not in path.parts
    }
    assert [name for name, content in shown.items() if NAME.encode() in content] == []


def test_a_planted_name_is_in_no_page_of_the_report(fresh_model: Path, tmp_path: Path) -> None:
    """Not in the pages with pictures either, which lie in OUT/private."""
    folder, out = tmp_path / NAME, tmp_path / "out"
    folder.mkdir()
    planted_values = {
        "PatientName": f"{NAME}^Erika",
        "PatientID": f"{NAME}-1",
        "PatientBirthDate": "19640812",
        "StudyDate": "20210317",
        "AccessionNumber": f"{NAME}-2",
        "InstitutionName": f"Clinic {NAME}",
        "StudyDescription": f"Thorax {NAME}",
        "SeriesDescription": f"Lung {NAME}",
    }
    uids = []
    for n in range(4):
        dataset = pydicom.dcmread(io.BytesIO(dicom(n)))
        for name, value in planted_values.items():
            setattr(dataset, name, value)
        uids += [dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID]
        dataset.save_as(folder / f"{NAME}_{n}.dcm", enforce_file_format=True)
    assert call("score", folder, "-o", out, "-m", fresh_model).returncode == 0
    assert call("report", out).returncode == 0
    assert call("report", out, "--pictures").returncode == 0
    files = [path for path in out.rglob("*") if path.is_file() and "private" not in path.parts]
    pages = [*files, *(out / "private/report").rglob("*.html")]
    assert len([path for path in pages if path.suffix == ".html"]) >= 6
    planted_texts = [NAME, "19640812", "20210317", *uids]
    leaks = [
        (path.name, text)
        for path in pages
        for text in planted_texts
        if text.encode() in path.read_bytes()
    ]
    assert leaks == []
    drawn = [
        p for p in (out / "private/report/studies").iterdir() if b"image/png" in p.read_bytes()
    ]
    assert drawn
