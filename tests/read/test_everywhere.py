"""Each odd input gives the same rows loose, in a zip, in a tar and on S3.

The inputs are the folders `data/corpus`, `cases/imaging` and `cases/reliability` of the reference
material. A few of the cases are checked against their own expected rows.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pytest

from cctmn.contract import InputContract
from cctmn.errors import PASSED_OVER
from cctmn.read import inventory
from cctmn.score.prepare import prepare
from tests.conftest import SHARED, S3Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SHARED.is_dir(), reason="no reference material: the folder `shared` is not here"
    ),
]
KEY = b"k" * 32
FOLDERS = ("data/corpus", "cases/imaging", "cases/reliability")
LISTS = (".csv", ".pth", ".py")  # manifests, a checkpoint, scripts: cases of other commands
ARCHIVES = (".zip", ".tar", ".gz", ".bz2", ".xz", ".tgz", ".7z", ".tbz2", ".txz")


class Outcome(NamedTuple):
    code: str
    flags: tuple[str, ...]
    pixels: str


Outcomes = dict[tuple[str, str, int, int], Outcome]


def inputs() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((SHARED / folder).rglob("*")):
            if path.is_file() and path.suffix not in LISTS:
                yield path.relative_to(SHARED).as_posix(), path


def outcomes(uri: str) -> Outcomes:
    """What each slice below a folder, prefix or archive gives, by its name from there."""
    table = pa.concat_tables(list(inventory.index([uri], key=KEY)))
    ready = prepare(table, contract=InputContract(), key=KEY, threads=2).to_pylist()
    result: Outcomes = {}
    for place, row in zip(table.to_pylist(), ready, strict=True):
        path = place["uri"].partition("/in/")[2]
        name = (unquote(path) if uri.startswith("/") else path) or place["member"].removeprefix(
            "in/"
        )
        member = place["member"] if "/in/" in place["uri"] else ""
        pixels = hashlib.sha256(row["pixels"]).hexdigest()
        result[name, member, place["occurrence"], place["frame"]] = Outcome(
            row["error_code"], tuple(row["flags"]), pixels
        )
    assert len(result) == len(table)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("everywhere") / "in"
    for name, path in inputs():
        copy = root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module")
def loose(folder: Path) -> Outcomes:
    return outcomes(str(folder))


def without_archives(of: Outcomes) -> Outcomes:
    return {key: value for key, value in of.items() if not key[0].endswith(ARCHIVES)}


def test_loose_inputs_have_rows(loose: Outcomes) -> None:
    assert {key[0] for key in loose} == {name for name, _ in inputs()}
    assert sum(not outcome.code for outcome in loose.values()) > 100


def test_members_of_a_zip(folder: Path, loose: Outcomes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in inputs():
            archive.write(path, "in/" + name)
    inside = outcomes(str(tmp_path / "all.zip"))
    assert without_archives(inside) == without_archives(loose)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_members_of_a_tar(suffix: str, folder: Path, loose: Outcomes, tmp_path: Path) -> None:
    place = tmp_path / f"all.{suffix}"
    with tarfile.open(place, "w:gz" if suffix.endswith("gz") else "w") as archive:
        for name, path in inputs():
            archive.add(path, "in/" + name)
    inside = outcomes(str(place))
    assert without_archives(inside) == without_archives(loose)


def test_objects_on_s3(loose: Outcomes, s3: S3Server) -> None:
    bucket = s3.bucket("everywhere")
    for name, path in inputs():
        bucket.upload_fileobj(io.BytesIO(path.read_bytes()), "everywhere", "in/" + name)
    assert outcomes("s3://everywhere/in/") == loose


def test_the_cases_give_what_they_ask(loose: Outcomes) -> None:
    """What the two lists of cases ask, as far as it concerns reading."""
    by_name: dict[str, list[Outcome]] = {}
    for (name, *_), outcome in loose.items():
        by_name.setdefault(name.removeprefix("cases/"), []).append(outcome)

    def codes(name: str) -> list[str]:
        return [outcome.code for outcome in by_name[name]]

    assert codes("imaging/imagetype/t01_mip_CT_SOM5.dcm") == ["derived_map"]
    assert codes("imaging/geometry/g01_enhanced_coronal_first.dcm") == ["not_axial", "", ""]
    assert codes("imaging/archives/a01_stored_data_descriptor.zip") == ["", ""]
    assert codes("imaging/archives/a03_PK00_marker.zip") == ["", ""]
    finder = codes("imaging/archives/a06_macos_finder.zip")
    assert (finder.count(""), {c for c in finder if c} <= PASSED_OVER) == (2, True)
    [sheet] = by_name["imaging/pictures/p01_film_sheet_2x2.png"]
    assert "not_ct_like" in sheet.flags
    assert codes("imaging/intensity/i01_siemens_fov_minus8192.dcm") == [""]
    assert len(codes("reliability/bad_first_block.gz")) == 1
    assert codes("reliability/head_lost.zip") == ["archive_truncated"]
    assert len(codes("reliability/size_minus_512.tar")) == 2
    assert codes("reliability/stored_streamed.zip") == ["", ""]
    assert codes("reliability/gap_64.zip") == ["", ""]
    assert codes("reliability/bzip2.zip") == [""]
    for name in ("sequence_cut.dcm", "size_2_to_80.tar", "longname_1gib.tar.bz2"):
        assert any(codes("reliability/" + name)), name
    [good] = by_name["reliability/good.png"]
    assert (good.code, "window" in good.flags) == ("", True)
