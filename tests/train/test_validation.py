"""The validation part: whole patients of every class, counted, or refused in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.contract import InputContract
from cctmn.data import splits
from cctmn.data.lesions import LesionSample, check_lesions, open_lesions
from cctmn.data.slices import SliceSample, open_slices
from cctmn.errors import DataError
from cctmn.train import run, validation
from cctmn.train.datasets import Data
from cctmn.train.stages import stage_of
from tests.commands import call, one_line
from tests.train.small import INPUT, detector_folder, write_lesions, write_slices

CONTROL, PNEUMONIA, COVID = range(3)
LESIONS = ("ggo", "consolidation")


class Said:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str, *, transient: bool = False, names: str = "") -> None:
        self.lines.append(text)


def slices(*of_patients: tuple[str, str]) -> tuple[SliceSample, ...]:
    """Slices of patients, each slice with the digit of its class."""
    return tuple(
        SliceSample(f"{patient}_{i}.png", "", int(digit), patient)
        for patient, digits in of_patients
        for i, digit in enumerate(digits)
    )


def draw(samples: Any, *, config: Any = None, **changes: Any) -> tuple[Any, Any]:
    config = config or ClassifierConfig(**{"valid_fraction": 0.25, **changes})
    is_classifier = isinstance(config, ClassifierConfig)
    return validation.draw(
        samples,
        stage=stage_of(config),
        classes=COVIDX_CLASSES if is_classifier else LESIONS,
        where="data",
        begun_with=lambda parts: False,
        report=Said(),
    )


def patients(samples: Any) -> set[str]:
    return {one.patient for one in samples}


ARCHIVE = slices(
    *((f"a{i}", "00") for i in range(20)),
    *((f"b{i}", "01") for i in range(8)),
    *((f"c{i}", "0002") for i in range(4)),
)


def test_a_fraction_of_the_patients_of_each_class_is_drawn() -> None:
    train, valid = draw(ARCHIVE)
    assert not patients(train) & patients(valid)
    assert sorted(name[0] for name in patients(valid)) == [*"aaaaa", *"bb", "c"]
    assert len(train) + len(valid) == len(ARCHIVE)


def test_every_class_has_a_validation_patient_at_a_small_fraction() -> None:
    _, valid = draw(ARCHIVE, valid_fraction=0.01)
    assert {sample.label for sample in valid} == {CONTROL, PNEUMONIA, COVID}


def test_every_class_keeps_a_training_patient_at_a_large_fraction() -> None:
    train, _ = draw(ARCHIVE, valid_fraction=0.99)
    assert {name[0] for name in patients(train)} == set("abc")


def test_the_draw_depends_on_the_seed_alone() -> None:
    def drawn(seed: int, samples: Any = ARCHIVE) -> set[str]:
        strata = validation.strata_of_classes(
            splits.by_patient(samples), classes=COVIDX_CLASSES, where=""
        )
        parts = splits.held_out(samples, fraction=0.25, seed=seed, strata=strata)
        return patients(parts[1])

    assert drawn(1) == drawn(1, ARCHIVE[::-1])
    assert len({frozenset(drawn(seed)) for seed in range(6)}) > 1


def test_a_patient_has_the_class_of_its_sickest_slice_or_of_patient_label() -> None:
    samples = (*slices(("a", "0001"), ("b", "0211"), ("c", "00")), *slices(("d", "00")))
    given = [one._replace(patient_label=COVID) if one.patient == "d" else one for one in samples]
    strata = validation.strata_of_classes(
        splits.by_patient(given), classes=COVIDX_CLASSES, where="data"
    )
    assert [strata[splits.PatientKey("patient", name)] for name in "abcd"] == [1, 1, 0, 2]
    two = [given[-1]._replace(patient_label=PNEUMONIA), *given[:-1]]
    with pytest.raises(DataError, match="1 patients have several values in patient_label"):
        validation.strata_of_classes(splits.by_patient(two), classes=COVIDX_CLASSES, where="")


@pytest.mark.parametrize(
    ("of_patients", "message"),
    [
        ([("c1", "2")], r"data: the class covid would be missing from the validation part, because "
         r"1 patient in all .*--valid or --valid-split, change valid_fraction"),
        ([], r"no slice is of the class covid; .*set classes without it, or give .*--valid"),
    ],
)  # fmt: skip
def test_a_class_that_would_be_missing_is_refused(of_patients: Any, message: str) -> None:
    others = [(f"{name}{i}", digit) for name, digit in (("a", "0"), ("b", "1")) for i in range(4)]
    with pytest.raises(DataError, match=message):
        draw(slices(*others, *of_patients))


def test_a_class_on_slices_of_training_patients_alone_is_refused() -> None:
    samples = slices(*((f"b{i}", "1") for i in range(8)), ("b8", "10"), ("c1", "2"), ("c2", "2"))
    with pytest.raises(DataError, match="the class control would be missing from"):
        draw(samples)


def test_slices_of_unknown_patients_are_patients_of_their_own() -> None:
    samples = tuple(
        SliceSample(f"{digit}{i}", "", digit, "") for digit in range(3) for i in range(8)
    )
    train, valid = draw(samples)
    assert (len(train), len(valid)) == (18, 6)
    said = Said()
    validation.report_counts((train, valid), classes=COVIDX_CLASSES, report=said)
    assert said.lines == [
        "training part: 18 slices of 18 patients (control 6 slices of 6 patients; pneumonia 6 "
        "slices of 6 patients; covid 6 slices of 6 patients)",
        "validation part: 6 slices of 6 patients (control 2 slices of 2 patients; pneumonia 2 "
        "slices of 2 patients; covid 2 slices of 2 patients)",
        "24 slices of unknown patient: each counts as a patient of its own, so a person may be in "
        "both parts",
    ]


def test_few_validation_patients_are_a_caution() -> None:
    said = Said()
    validation.report_counts(draw(ARCHIVE), classes=COVIDX_CLASSES, report=said)
    assert "validation part: 18 slices of 8 patients" in said.lines[1]
    assert said.lines[2].startswith("caution: fewer than two validation patients of covid:")


# --- lesions


def lesions(*of_patients: tuple[str, set[int]]) -> tuple[LesionSample, ...]:
    return tuple(
        LesionSample(f"{patient}_{label}", "", "", patient, (label,))
        for patient, labels in of_patients
        for label in sorted(labels)
    )


def test_patients_with_lesions_are_drawn_by_their_rarest_lesion_class() -> None:
    samples = lesions(*((f"g{i}", {1}) for i in range(16)), *((f"c{i}", {1, 2}) for i in range(4)))
    train, valid = draw(samples, config=DetectorConfig(valid_fraction=0.25))
    assert sorted(name[0] for name in patients(valid)) == ["c", *"gggg"]
    assert not patients(train) & patients(valid)


def test_a_lesion_class_of_one_patient_is_refused() -> None:
    samples = lesions(*((f"g{i}", {1}) for i in range(6)), ("c", {1, 2}))
    with pytest.raises(DataError, match="the class consolidation would be missing from the valid"):
        draw(samples, config=DetectorConfig())
    with pytest.raises(DataError, match=r"no slice is of the class consolidation; .* set lesions"):
        draw(samples[:-1], config=DetectorConfig())


def test_checked_slices_know_the_labels_of_their_lesions(tmp_path: Path) -> None:
    opened = open_lesions(str(write_lesions(tmp_path / "lesions", count=2, seed=1)))
    assert {one.labels for one in opened.samples} == {()}
    checked = check_lesions(
        opened, lesion_classes=LESIONS, contract=InputContract.from_card(INPUT), threads=1
    )
    assert [one.labels for one in checked.samples] == [(1, 2), (1, 2)]


# --- tables, older runs and the command


def test_a_table_gives_the_class_of_a_patient(tmp_path: Path) -> None:
    table = tmp_path / "slices.csv"
    table.write_text("name,label,patient,patient_label\na,control,p,NCP\nb,control,q,\n")
    samples = open_slices(str(table), classes=COVIDX_CLASSES).samples
    assert [one.patient_label for one in samples] == [COVID, -1]


@pytest.mark.parametrize(
    ("samples", "lines"),
    [
        (ARCHIVE, ["this run was begun with validation patients drawn whatever their class; it "
                   "goes on with them"]),
        (slices(("a", "012"), ("b", "012")), []),  # both ways draw the same patients
    ],
)  # fmt: skip
def test_a_run_that_was_begun_with_another_draw_goes_on_with_it(samples: Any, lines: Any) -> None:
    config = ClassifierConfig(valid_fraction=0.4)
    before = splits.held_out(samples, fraction=0.4, seed=0)
    said = Said()
    parts = validation.draw(
        samples,
        stage=stage_of(config),
        classes=COVIDX_CLASSES,
        where="data",
        begun_with=lambda drawn: drawn == before,
        report=said,
    )
    assert parts == before
    assert said.lines == lines


def test_training_refuses_a_class_of_one_patient_in_one_line(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "slices", count=5, seed=1)
    done = call(
        *("train", "classifier", "--data", folder, "-m", detector_folder(tmp_path)),
        *("-o", tmp_path / "out", "-q"),
    )
    one_line(done, code=2, message="the class covid would be missing from the validation part")
    assert not (tmp_path / "out").exists()


# --- a sample of the validation slices


def test_a_sample_has_each_class_by_its_fraction() -> None:
    chosen = validation.sampled(ARCHIVE, count=15, seed=0)
    assert len(chosen) == 15
    count = Counter(sample.label for sample in chosen)
    whole = Counter(sample.label for sample in ARCHIVE)
    for label, of_all in whole.items():
        assert abs(count[label] - 15 * of_all / len(ARCHIVE)) <= 1, label


def test_a_sample_takes_no_second_slice_of_a_patient_before_the_first_of_all() -> None:
    archive = slices(*((f"a{i}", "0" * 30) for i in range(5)), *((f"b{i}", "0") for i in range(9)))
    chosen = validation.sampled(archive, count=14, seed=0)
    assert len(patients(chosen)) == 14


def test_a_sample_has_at_least_one_slice_of_a_rare_class() -> None:
    archive = slices(*((f"a{i}", "0" * 30) for i in range(9)), ("c", "2"), ("b", "1"))
    chosen = validation.sampled(archive, count=3, seed=0)
    assert {sample.label for sample in chosen} == {CONTROL, PNEUMONIA, COVID}


def test_a_sample_is_the_same_each_time_and_another_with_another_seed() -> None:
    first = validation.sampled(ARCHIVE, count=10, seed=0)
    assert first == validation.sampled(ARCHIVE, count=10, seed=0)
    assert first != validation.sampled(ARCHIVE, count=10, seed=1)


@pytest.mark.parametrize("count", [0, len(ARCHIVE), 1000])
def test_without_a_smaller_number_all_slices_validate(count: int) -> None:
    assert validation.sampled(ARCHIVE, count=count, seed=0) is ARCHIVE


def test_a_sample_of_lesions_has_the_rarer_class() -> None:
    common = tuple(LesionSample(f"a{i}", "", "", f"a{i}", (1,)) for i in range(20))
    rare = (LesionSample("b", "", "", "b", (1, 2)),)
    assert rare[0] in validation.sampled(common + rare, count=2, seed=0)


def identity_settings(**changes: Any) -> Any:
    job = run.TrainJob(ClassifierConfig(**changes), Data("data"), "out")
    sets = ARCHIVE[:2], ARCHIVE[2:4]
    return run._identity(job, weights_sha256="", sets=sets).values["settings"]


def test_a_run_of_an_earlier_version_is_the_same_run() -> None:
    assert not {"validate_every", "validate_slices"} & identity_settings().keys()


@pytest.mark.parametrize("changes", [{"validate_every": 2}, {"validate_slices": 5}])
def test_what_chooses_the_best_epoch_makes_another_run(changes: dict[str, int]) -> None:
    assert identity_settings(**changes) == identity_settings() | changes
