"""No patient on both sides: what refuses, what is drawn, and what holds for the public splits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.covidx import SplitLine, read_split
from cctmn.data.lesions import LesionSample
from cctmn.data.slices import SliceSample
from cctmn.data.splits import check_disjoint, held_out
from cctmn.errors import DataError


def slices(*patients: str) -> list[SliceSample]:
    return [SliceSample(f"{i}.png", f"file:///{i}.png", 0, p) for i, p in enumerate(patients)]


def test_a_patient_in_two_splits_refuses() -> None:
    parts = {"train": slices(*"abcdefgh"), "validation": slices("x"), "test": slices(*"hgfedcbz")}
    with pytest.raises(
        DataError, match=r"train and test share 7 patients; .* \(b, c, d, e, f, \.\.\."
    ):
        check_disjoint(parts)
    assert check_disjoint({"train": slices("a", "b", "a"), "test": slices("c")}) == 0


def test_unknown_patients_are_counted() -> None:
    assert check_disjoint({"train": slices("", "a", ""), "test": slices("", "b")}) == 3
    assert check_disjoint({}) == 0


def test_held_out_by_patient() -> None:
    samples = slices(*[f"p{i % 10}" for i in range(50)])
    train, held = held_out(samples, fraction=0.2, seed=1)
    assert len({s.patient for s in held}) == 2
    assert check_disjoint({"train": train, "held out": held}) == 0
    assert sorted(train + held) == sorted(samples)
    assert list(train) == [s for s in samples if s in train]  # in order
    assert held_out(samples[::-1], fraction=0.2, seed=1)[1] == held[::-1]
    drawn = {held_out(samples, fraction=0.2, seed=seed)[1] for seed in range(8)}
    assert len(drawn) > 1


def test_held_out_patients_do_not_change() -> None:
    """A new numpy or another machine draws the same patients."""
    _, held = held_out(slices(*"abcdefgh"), fraction=0.25, seed=0)
    assert "".join(s.patient for s in held) == "bg"


def test_ids_that_differ_in_case_alone_are_one_patient() -> None:
    with pytest.raises(DataError, match=r"train and test share 1 patients; .* \(p9\)"):
        check_disjoint({"train": slices("p9", "a"), "test": slices("P9", "b")})
    samples = slices(*["p9", "P9", "x", "y"] * 3)
    for seed in range(8):
        parts = held_out(samples, fraction=0.34, seed=seed)
        assert sum(any(s.patient in ("p9", "P9") for s in part) for part in parts) == 1


def test_lesion_samples_and_unknown_patients() -> None:
    lesions = [LesionSample(f"{i}_1", "", "", str(i)) for i in range(4)]
    assert [len(part) for part in held_out(lesions, fraction=0.5, seed=0)] == [2, 2]
    unknown = slices("", "", "", "a", "a\udcff")
    assert [len(part) for part in held_out(unknown, fraction=0.4, seed=3)] == [3, 2]


@pytest.mark.parametrize(
    ("patients", "fraction"),
    [("aaaa", 0.5), ("ab", 0.1), ("ab", 0.9), ("abcd", 0.0), ("abcd", 1.0), ("", 0.5), ("ab", -1)],
)
def test_an_empty_side_refuses(patients: str, fraction: float) -> None:
    with pytest.raises(DataError, match="leaves a side empty; choose"):
        held_out(slices(*patients), fraction=fraction, seed=0)


# --- the public splits


class Name(NamedTuple):
    name: str
    patient: str


@functools.cache
def covidx(folder: Path, part: str) -> tuple[SplitLine, ...]:
    file = folder / "data" / "covidx_ct_v1" / f"{part}_COVIDx_CT-1.txt"
    return read_split(str(file), classes=COVIDX_CLASSES)


def counts(lines: tuple[SplitLine, ...]) -> list[int]:
    return [sum(line.label == label for line in lines) for label in range(3)]


def test_covidx_splits_share_no_patient(shared: Path) -> None:
    parts = {part: covidx(shared, part) for part in ("train", "val", "test")}
    assert {part: len(lines) for part, lines in parts.items()} == {
        "train": 61_782,
        "val": 21_036,
        "test": 21_191,
    }
    assert counts(parts["train"]) == [27_201, 22_061, 12_520]
    assert counts(parts["test"]) == [9_450, 7_395, 4_346]
    assert check_disjoint(parts) == 0
    # why the number alone is the patient: none occurs in two classes
    lines = [line for part in parts.values() for line in part]
    assert len({(line.label, line.patient) for line in lines}) == len({s.patient for s in lines})


def test_the_authors_3000_slices(shared: Path) -> None:
    file = shared / "data" / "covid_ct_mask_net" / "train_split_classification.txt"
    sampled = read_split(str(file), classes=COVIDX_CLASSES)
    train = {line.key: line for line in covidx(shared, "train")}
    assert counts(sampled) == [1000, 1000, 1000]
    for line in sampled:
        assert (train[line.key].label, train[line.key].patient) == (line.label, line.patient)
    remaining = tuple(train[key] for key in train.keys() - {line.key for line in sampled})
    assert len(remaining) == 58_782
    assert counts(remaining) == [26_201, 21_061, 11_520]
    patients = {line.patient for line in sampled}
    assert len(patients) == 608
    assert len(patients & {line.patient for line in remaining}) == 606
    with pytest.raises(DataError, match="sampled and remaining share 606 patients"):
        check_disjoint({"sampled": sampled, "remaining": remaining})


def test_the_authors_lesion_splits_share_no_patient(shared: Path) -> None:
    parts = {}
    for part in ("train", "test"):
        file = shared / "data" / "covid_ct_mask_net" / f"{part}_split_segmentation.txt"
        names = [line.removesuffix(".jpg") for line in file.read_text().split()]
        parts[part] = [Name(name, name.rpartition("_")[0]) for name in names]
    assert [len(names) for names in parts.values()] == [650, 100]
    assert check_disjoint(parts) == 0
