"""A training list drawn at random: so many slices per class, spread over the patients."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.covidx import read_split
from cctmn.data.slices import open_slices
from tests.commands import call, one_line

HEADER = "uri,label,patient,scanner\n"


def table(tmp_path: Path, *of_patients: tuple[str, str, int]) -> Path:
    """Write a table with slices of patients, each with its label and number of slices."""
    rows = [
        f"{patient or label}-{i}.png,{label},{patient},A\n"
        for patient, label, count in of_patients
        for i in range(count)
    ]
    place = tmp_path / "all.csv"
    place.write_text(HEADER + "".join(rows))
    return place


def rows(place: Path) -> list[dict[str, str]]:
    with place.open(newline="") as file:
        return list(csv.DictReader(file))


def sampled(place: Path, *options: object, name: str = "some.csv") -> Path:
    out = place.parent / name
    done = call("labels", "sample", place, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    return out


ARCHIVE = (
    ("long", "control", 500),
    *((f"a{i}", "Normal", 4) for i in range(9)),
    *((f"c{i}", "NCP", 3 + i) for i in range(8)),
)


def test_each_class_has_its_number_and_no_patient_dominates(tmp_path: Path) -> None:
    drawn = rows(sampled(table(tmp_path, *ARCHIVE), "--per-class", 24))
    of_class = Counter("covid" if row["label"] == "NCP" else "control" for row in drawn)
    assert of_class == {"control": 24, "covid": 24}
    by_patient = Counter(row["patient"] for row in drawn)
    # 24 slices of 10 patients, one of whom has 500.
    assert {by_patient[p] for p, label, _ in ARCHIVE if label != "NCP"} == {2, 3}
    assert {by_patient[p] for p, label, _ in ARCHIVE if label == "NCP"} == {3}


def test_patients_with_many_slices_fill_what_the_others_lack(tmp_path: Path) -> None:
    drawn = rows(sampled(table(tmp_path, *ARCHIVE[:10]), "--per-class", 100))
    by_patient = Counter(row["patient"] for row in drawn)
    assert by_patient == {"long": 64, **{f"a{i}": 4 for i in range(9)}}


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    place = table(tmp_path, *ARCHIVE)

    def texts(*options: object) -> set[str]:
        return {row["uri"] for row in rows(sampled(place, "--per-class", 12, *options))}

    first = texts("--seed", 1)
    assert texts("--seed", 1) == first
    assert texts("--seed", 2) != first
    lines = place.read_text().splitlines(keepends=True)
    place.write_text(lines[0] + "".join(reversed(lines[1:])))
    assert texts("--seed", 1) == first


def test_rows_keep_their_columns_and_order(tmp_path: Path) -> None:
    place = table(tmp_path, *ARCHIVE)
    whole = rows(place)
    drawn = rows(sampled(place, "--per-class", 9))
    places = [whole.index(row) for row in drawn]
    assert places == sorted(places)
    parquet = sampled(place, "--per-class", 9, name="some.parquet")
    assert pq.read_table(parquet).to_pylist() == drawn


def test_what_was_drawn_is_said(tmp_path: Path) -> None:
    place = table(tmp_path, *ARCHIVE, ("", "CP", 30))
    done = call("labels", "sample", place, "--per-class", 20, "-o", tmp_path / "x.csv")
    assert done.stderr.splitlines() == [
        "60 slices, seed 0: 20 control of 10 patients, 20 pneumonia of 20 patients, 20 covid of 8 "
        "patients",
        "The patient of 20 slices is unknown; each counts as a patient of its own, so a person "
        "may have more slices than others.",
    ]


def test_a_split_file_stays_one_and_trains(tmp_path: Path) -> None:
    place = tmp_path / "train.txt"
    lines = [
        f"{prefix}_{patient}_1_{i:04d}.png {label} 1 2 3 4"
        for label, prefix in enumerate(("Normal", "CP", "NCP"))
        for patient in range(10 * label, 10 * label + 5)
        for i in range(6)
    ]
    place.write_text("\n".join([*lines, "", ""]))
    out = sampled(place, "--per-class", 10, name="some.txt")
    chosen = out.read_text().splitlines()
    assert set(chosen) <= set(lines)
    parsed = read_split(str(out), classes=COVIDX_CLASSES)
    assert Counter(line.label for line in parsed) == {0: 10, 1: 10, 2: 10}
    assert set(Counter(line.patient for line in parsed).values()) == {2}


def test_a_drawn_table_is_a_training_list(tmp_path: Path) -> None:
    out = sampled(table(tmp_path, *ARCHIVE), "--per-class", 9)
    samples = open_slices(str(out), classes=COVIDX_CLASSES).samples
    assert Counter(one.label for one in samples) == {0: 9, 2: 9}


@pytest.mark.parametrize(
    ("name", "out", "options", "message"),
    [
        (
            "all.csv",
            "x.csv",
            ["--per-class", 69],
            "the class covid has 52 slices, fewer than 69; lower ",
        ),
        ("all.csv", "x.txt", ["--per-class", 1], "give a .csv or .parquet file"),
        ("all.csv", "all.csv", ["--per-class", 1], "is LABELS itself"),
        ("a.json", "x.csv", ["--per-class", 1], "give a .csv or .parquet, or a .txt split"),
        ("twice.csv", "x.csv", ["--per-class", 1], "a slice is listed before"),
        ("bare.csv", "x.csv", ["--per-class", 1], "no label; fill it in"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    tmp_path: Path, name: str, out: str, options: list[object], message: str
) -> None:
    table(tmp_path, *ARCHIVE)
    (tmp_path / "twice.csv").write_text("uri,label\na,control\na,control\n")
    (tmp_path / "bare.csv").write_text("uri,label\na,\n")
    (tmp_path / "a.json").write_text("[]")
    done = call("labels", "sample", tmp_path / name, "-o", tmp_path / out, *options)
    one_line(done, code=2, message=message)
    assert not (tmp_path / "x.csv").exists()


def test_the_papers_number_is_drawn_from_covidx_ct(tmp_path: Path, shared: Path) -> None:
    whole = shared / "data" / "covidx_ct_v1" / "train_COVIDx_CT-1.txt"
    out = tmp_path / "train.txt"
    done = call("labels", "sample", whole, "--per-class", 1000, "--seed", 1, "-o", out)
    assert done.returncode == 0, done.stderr
    lines = read_split(str(out), classes=COVIDX_CLASSES)
    assert Counter(line.label for line in lines) == {0: 1000, 1: 1000, 2: 1000}
    everyone = {line.patient for line in read_split(str(whole), classes=COVIDX_CLASSES)}
    assert {line.patient for line in lines} == everyone
    for label in range(3):
        of_class = Counter(line.patient for line in lines if line.label == label)
        assert max(of_class.values()) < 20
