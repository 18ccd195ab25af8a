"""One folder with every input that ever failed, among good slices: each has its row."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pytest

from cctmn import tables
from cctmn.config import ScoreConfig
from cctmn.score import run
from tests.makers import dicom, png, stand_in, tarred, zipped
from tests.read.test_boundary import HUGE, NEGATIVE, PNG, chained, raw_tar

GOOD = 40
BAD = {
    "negative.tar": raw_tar(("a.png", PNG), ("b", b""), size=NEGATIVE),
    "huge.tar": raw_tar(("a.png", PNG), ("b", b""), size=HUGE),
    "chained.tar": chained(600),
    "bad.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 40,
    "cut.tgz": gzip.compress(tarred({"a.png": PNG}))[:-2000],
    "zeros.tar.bz2": bz2.compress(tarred({"a.png": PNG}) + bytes(100 << 20)),
    "headless.zip": zipped({"a.png": PNG, "b.png": PNG})[1000:],
    "endless.zip": zipped({"a.png": PNG, "b.png": PNG})[:-30],
    "cut.dcm": dicom(1)[:291],
    "empty": b"",
    "notes.txt": b"notes",
    "viewer.exe": b"MZ" + bytes(500),
    "login.dcm": b"<html>Please log in</html>",
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(500),
    "~$x.png": b"\0" * 162,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for n in range(GOOD):
        (folder / f"good{n:02d}.png").write_bytes(png(n))
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    return folder


def score(
    inputs: list[str], out: Path, cluster: str
) -> tuple[run.ScoreSummary, dict[str, set[str]]]:
    """Score; the summary and the codes of each object by its name."""
    job = run.ScoreJob(inputs, out=str(out), source=stand_in(), settings=ScoreConfig(actors=1))
    summary = run.score(job, address=cluster)
    rows = {row["slice_id"]: row for row in tables.rows((out / "predictions").as_uri())}
    codes: dict[str, set[str]] = {}
    for table in tables.inventory((out / "private" / "inventory").as_uri()):
        for row in table.to_pylist():
            name = row["uri"].rsplit("/", 1)[1]
            codes.setdefault(name, set()).add(rows[row["slice_id"]]["error_code"])
    return summary, codes


def test_every_object_has_a_row_and_the_good_ones_are_scored(
    folder: Path, tmp_path: Path, cluster: str
) -> None:
    summary, codes = score([str(folder)], tmp_path / "out", cluster)
    assert summary.exit_code == 3
    assert summary.counts.pending == 0
    assert {name for name, of in codes.items() if name.startswith("good") and of == {""}} == {
        f"good{n:02d}.png" for n in range(GOOD)
    }
    assert len(codes) == GOOD + len(BAD)
    assert codes["notes.txt"] == codes["viewer.exe"] == {"not_an_image"}
    assert codes[".DS_Store"] == {"system_file"}
    assert codes["login.dcm"] == {"unsupported_format"}
    # the rate counts errors among slices: neither the system's files nor the programs
    assert summary.counts.passed_over == 3


def test_an_archive_as_a_mac_packs_it_is_no_failure(tmp_path: Path, cluster: str) -> None:
    double = b"\x00\x05\x16\x07" + bytes(160)
    members = {"S/IM0001": dicom(1), "__MACOSX/S/._IM0001": double, "S/.DS_Store": b"\0\0\0\1Bud1"}
    pacs = {"DICOM/IM1": dicom(2), "AUTORUN.INF": b"[autorun]", "VIEWER/V.EXE": b"MZ" + bytes(90)}
    nas = {"a.png": png(1), "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": png(2)}
    nas |= {"out/private/key": bytes(32), f"out/eval/private/cases/{'0' * 32}.png": png(3)}
    paths = []
    for name, content in (("mac", members), ("pacs", pacs), ("nas", nas)):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(zipped(content))
        paths.append(str(path))
    summary, _ = score(paths, tmp_path / "out", cluster)
    assert summary.exit_code == 0
    assert (summary.counts.ok, summary.counts.passed_over, summary.counts.error) == (3, 7, 0)


def test_an_object_that_is_listed_twice_is_one_row(tmp_path: Path, cluster: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "list.csv").write_text("uri\na.png\n./a.png\n")
    summary, codes = score([str(tmp_path / "list.csv")], tmp_path / "out", cluster)
    assert (summary.counts.inventory, summary.exit_code) == (1, 0)
    assert codes == {"a.png": {""}}


@pytest.mark.parametrize("name", ["out?x", "out#1", "out 100%", "out[1]", "out*"])
def test_an_output_folder_of_any_name(name: str, tmp_path: Path, cluster: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    summary, _ = score([str(tmp_path / "a.png")], tmp_path / name, cluster)
    assert (summary.counts.ok, summary.exit_code) == (1, 0)
