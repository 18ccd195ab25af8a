"""Names of the public data sets: the patient of every published name, and one key per slice."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.covidx import read_split
from cctmn.data.labels import covidx_ct
from cctmn.data.slice_names import parse_name
from cctmn.errors import DataError
from tests.commands import call

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100"


@pytest.mark.parametrize(
    ("name", "patient", "scan"),
    [
        ("NCP_341_1834_0022.png", "341", "1834"),
        ("COVIDCTMD-P002-IM0025.png", "COVIDCTMD-P002", ""),
        ("COVIDCTMD-cap004-IM0068.png", "COVIDCTMD-cap004", ""),
        (f"LIDC-IDRI-0273-{UID}-0032.png", "LIDC-IDRI-0273", UID),
        ("volume-covid19-A-0573_ct-0010.png", "volume-covid19-A-0573", ""),
        ("volume-covid19-A-0383_1_ct-0018.png", "volume-covid19-A-0383_1", ""),
        ("137covid_patient76_SR_2_IM00014.png", "patient76", "2"),
        ("cdnormal4_patient146_SR_2_IM00006.png", "patient146", "2"),
        ("coronacases_010-0075.png", "coronacases_010", ""),
        ("radiopaedia_4_85506_1-0004.png", "radiopaedia_4_85506", "1"),
        ("2_pCT11.jpg", "", ""),
    ],
)
def test_patient_and_scan_of_a_name(name: str, patient: str, scan: str) -> None:
    named = parse_name(name)
    assert named is not None
    assert (named.patient, named.scan) == (patient, scan)


@pytest.mark.parametrize("name", ["IM0001.dcm", "patient12.png", "radiopaedia-4-0001.png", "a_b_c"])
def test_other_names_say_nothing(name: str) -> None:
    assert parse_name(name) is None


def write(folder: Path, text: str) -> str:
    (folder / "split.txt").write_text(text)
    return str(folder / "split.txt")


@pytest.mark.parametrize(
    ("file", "slices", "patients"),
    [
        ("covidx_ct_v1/test_COVIDx_CT-1.txt", [9_450, 7_395, 4_346], 293),
        ("covidx_ct_v2/test_COVIDx_CT-2A.txt", [12_245, 7_395, 6_018], 426),
        ("covidx_ct_v2/val_COVIDx_CT-2A.txt", [11_842, 7_400, 6_244], 482),
        ("covidx_ct_v3/test_COVIDx_CT-3A.txt", [17_922, 7_965, 7_894], 503),
        ("covidx_ct_v3/val_COVIDx_CT-3A.txt", [17_570, 8_008, 8_147], 560),
    ],
)
def test_lists_have_the_published_counts_of_slices_and_patients(
    shared: Path, file: str, slices: list[int], patients: int
) -> None:
    """By class they add up to the published 25,658 (2A test), 33,781 and 33,725 (3A)."""
    table, _ = covidx_ct(str(shared / "data" / file))
    names = set(table["patient"].to_pylist())
    counts = {c["values"]: c["counts"] for c in table["label"].value_counts().to_pylist()}
    assert [counts[name] for name in COVIDX_CLASSES] == slices
    assert (len(names), "" in names) == (patients, False)


def test_the_lists_of_v2_share_no_patient(shared: Path) -> None:
    folder = shared / "data/covidx_ct_v2"
    parts = [
        {line.patient for line in read_split(str(folder / name), classes=COVIDX_CLASSES)}
        for name in ("test_COVIDx_CT-2A.txt", "val_COVIDx_CT-2A.txt")
    ]
    assert not parts[0] & parts[1]


@pytest.mark.parametrize(("control", "covid"), [(300, 300), (9275, 3701)])
def test_lists_of_ictcf_are_counted_by_class(tmp_path: Path, control: int, covid: int) -> None:
    """600 slices for training and 12,976 for testing, under names as the author's lists have."""
    names = [f"0_nCT{k}.jpg" for k in range(control)] + [f"2_pCT{k}.jpg" for k in range(covid)]
    done = call("labels", "covidx-ct", write(tmp_path, "\n".join(names)), "-o", tmp_path / "t.csv")
    assert done.returncode == 0, done.stderr
    assert f"{control + covid:,} slices" in done.stderr
    assert f"{control:,} control" in done.stderr
    assert f"{covid:,} covid" in done.stderr
    assert f"the patient of {control + covid:,} slices is unknown" in done.stderr


def test_every_published_name_leads_to_a_patient_of_the_metadata(shared: Path) -> None:
    with (shared / "data/covidx_ct_v3/metadata.csv").open() as file:
        known = {row["patient id"] for row in csv.DictReader(file)}
    # The number alone identifies a patient of CNCB.
    known |= {name.partition("_")[2] for name in known if name.startswith(("CP", "NCP", "Normal"))}
    lists = sorted((shared / "data").glob("covidx_ct_v[23]/*.txt"))
    assert len(lists) == 4
    for place in lists:
        lines = read_split(str(place), classes=COVIDX_CLASSES)
        assert {line.patient for line in lines} <= known


def test_the_lists_of_v3_share_no_patient(shared: Path) -> None:
    folder = shared / "data/covidx_ct_v3"
    parts = [
        {line.patient for line in read_split(str(folder / name), classes=COVIDX_CLASSES)}
        for name in ("test_COVIDx_CT-3A.txt", "val_COVIDx_CT-3A.txt")
    ]
    assert not parts[0] & parts[1]


def test_the_digit_of_an_ictcf_name_is_its_class(tmp_path: Path) -> None:
    split = write(tmp_path, "2_pCT11.jpg\n0_nCT13.jpg\n")
    lines = read_split(split, classes=("covid", "control"))
    assert [line.label for line in lines] == [0, 1]
    assert [line.patient for line in lines] == ["", ""]


def test_an_ictcf_slice_has_one_key_under_both_its_names(tmp_path: Path) -> None:
    keys = {named.key for name in ("2_pCT11.jpg", "pCT11.png") if (named := parse_name(name))}
    assert len(keys) == 1
    with pytest.raises(DataError, match="a slice is listed before"):
        read_split(write(tmp_path, "2_pCT11.jpg\npCT11.jpg\n"), classes=COVIDX_CLASSES)


def test_an_ictcf_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a name contains two classes"):
        read_split(write(tmp_path, "0_pCT11.jpg\n"), classes=COVIDX_CLASSES)


def test_the_ictcf_case_becomes_a_table(shared: Path) -> None:
    table, _ = covidx_ct(str(shared / "cases/evaluation/ictcf_split/train_ictcf.txt"))
    assert table["label"].to_pylist() == ["covid", "covid", "control", "control"]


def test_the_command_counts_slices_of_unknown_patients(tmp_path: Path) -> None:
    split = write(tmp_path, "2_pCT11.jpg\n0_7_8_9.png\n")
    done = call("labels", "covidx-ct", split)
    assert done.returncode == 0
    assert "2 slices of 1 patients" in done.stderr
    assert "the patient of 1 slices is unknown" in done.stderr
