"""Phantoms: the same for a seed, fast, true to their findings, and readable as what they claim."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from cctmn.classes import COVIDX_CLASSES, LESION_MODES
from cctmn.contract import InputContract
from cctmn.data.lesions import check_lesions, open_lesions
from cctmn.data.slices import check_slices, open_slices
from cctmn.errors import ConfigError
from cctmn.phantom import draw, layouts
from cctmn.read.decode import open_image
from cctmn.read.preprocess import to_input


def visible(finding: str, *, seed: int, recipe: str = "standard") -> draw.PhantomSlice:
    rng = np.random.default_rng(seed)
    patient = draw.Patient.drawn(rng, finding=finding, recipe=draw.RECIPES[recipe])
    return draw.visible_slice(patient, rng=rng)


@pytest.mark.parametrize("recipe", draw.RECIPES)
@pytest.mark.parametrize("finding", COVIDX_CLASSES)
def test_a_slice_is_a_chest_in_hu_that_passes_the_readers_checks(finding: str, recipe: str) -> None:
    for seed in range(3):
        slice_ = visible(finding, seed=seed, recipe=recipe)
        assert slice_.finding == finding
        lung = slice_.hu[slice_.labels == draw.CLEAN_LUNG]
        assert -900 < np.median(lung) < -780
        data = layouts.dicom_bytes(slice_.hu, patient=0, number=0, seed=1)
        read = open_image(data).frame(0)
        assert np.array_equal(read.pixels, slice_.hu)
        assert not to_input(read, InputContract()).flags


def test_findings_look_as_described() -> None:
    """Haze at the pleura of both lungs; what is dense lies in one."""
    sides: list[set[bool]] = []
    for seed in range(12):
        covid = visible(draw.COVID, seed=seed)
        haze = covid.hu[covid.labels == draw.GGO]
        assert -680 < np.median(haze) < -450
        assert not (covid.labels == draw.CONSOLIDATION).any()
        sides.append(set((np.nonzero(covid.labels == draw.GGO)[1] > 256).tolist()))
        pneumonia = visible(draw.PNEUMONIA, seed=seed)
        dense = pneumonia.labels == draw.CONSOLIDATION
        assert -120 < np.median(pneumonia.hu[dense]) < 60
        assert len(set((np.nonzero(dense)[1] > 256).tolist())) == 1
        control = visible(draw.CONTROL, seed=seed)
        assert control.labels.max() == draw.CLEAN_LUNG
    assert sum(len(side) == 2 for side in sides) >= 9


def test_a_lesion_spans_the_slices_that_it_reaches() -> None:
    rng = np.random.default_rng(4)
    patient = draw.Patient.drawn(rng, finding=draw.PNEUMONIA)
    (lesion, *_) = patient.lesions
    for off, there in ((0.0, True), (0.5, True), (1.05, False)):
        only = draw.Patient(**{**vars(patient), "lesions": (lesion,)})
        height = lesion.height + off * lesion.half_height
        slice_ = draw.slice_of(only, height=height, rng=rng)
        assert (slice_.labels == draw.CONSOLIDATION).any() == there


def test_a_slice_takes_less_than_150_ms() -> None:
    patients = [
        draw.Patient.drawn(np.random.default_rng(i), finding=finding)
        for i, finding in enumerate(COVIDX_CLASSES * 4)
    ]
    rng = np.random.default_rng(0)
    began = time.process_time()
    for patient in patients:
        draw.visible_slice(patient, rng=rng)
    assert (time.process_time() - began) / len(patients) < 0.15


def test_lesion_layout_is_cncbs(tmp_path: Path) -> None:
    layouts.write_lesions(tmp_path, count=10, seed=3)
    result = check_lesions(
        open_lesions(str(tmp_path)),
        lesion_classes=LESION_MODES["both"],
        contract=InputContract(),
        threads=1,
    )
    assert len(result.samples) == 10
    assert not result.issues.lines()
    assert {sample.patient for sample in result.samples} == {"30000", "30001", "30002", "30003"}
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()]
    assert {int(v) for mask in masks for v in np.unique(mask)} == {0, 1, 2, 3}


def test_slice_layout_is_covidxs(tmp_path: Path) -> None:
    layouts.write_slices(tmp_path, count=9, seed=3)
    for split in (None, str(tmp_path / "split.txt")):
        result = check_slices(
            open_slices(str(tmp_path), split=split, classes=COVIDX_CLASSES),
            contract=InputContract(),
            threads=1,
        )
        assert sorted(sample.label for sample in result.samples) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    name, _, *box = (tmp_path / "split.txt").read_text().splitlines()[0].split()
    x0, y0, x1, y1 = map(int, box)
    assert np.asarray(Image.open(tmp_path / name))[y0:y1, x0:x1].mean() > 100


def test_a_seed_gives_the_same_bytes_and_another_other_patients(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        layouts.write_slices(tmp_path / folder, count=3, seed=seed)
        layouts.write_archive(tmp_path / f"{folder}.zip", patients=1, slices=2, seed=seed)
    a, b, c = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in "abc"
    )
    assert a == b
    assert not {name for name in a if name.endswith(".png")} & c.keys()
    zips = [(tmp_path / f"{name}.zip").read_bytes() for name in "abc"]
    assert zips[0] == zips[1] != zips[2]
    with pytest.raises(ConfigError, match="recipe 'x' is unknown; use one of standard, other"):
        layouts.write_lesions(tmp_path / "x", count=1, seed=1, recipe="x")


def test_studies_have_geometry_syntaxes_and_a_truth(tmp_path: Path) -> None:
    truth = layouts.write_archive(tmp_path / "s.zip", patients=3, slices=5, seed=2)
    with (tmp_path / "s-truth.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in truth] == written
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        files = {
            name: pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()
        }
    assert [row["member"] for row in truth] == list(files)
    assert {f.file_meta.TransferSyntaxUID for f in files.values()} == set(layouts.SYNTAXES)
    assert len({f.StudyInstanceUID for f in files.values()}) == 3
    first = [f for name, f in files.items() if name.startswith("patient1/")]
    assert [f.ImagePositionPatient[2] for f in first] == [0, -8, -16, -24, -32]
    findings = {row["finding"] for row in truth}
    assert findings == set(COVIDX_CLASSES)
    assert all(row["finding"] == "control" for row in truth if row["patient"] == 3)


def test_a_whole_scan_is_clean_but_for_a_quarter_of_its_slices(tmp_path: Path) -> None:
    truth = layouts.write_archive(tmp_path / "s.zip", patients=3, slices=24, seed=2, extent=0.25)
    for patient, finding in ((1, draw.COVID), (2, draw.PNEUMONIA), (3, draw.CONTROL)):
        of_patient = [row["finding"] for row in truth if row["patient"] == patient]
        sick = [n for n, found in enumerate(of_patient) if found != draw.CONTROL]
        assert {of_patient[n] for n in sick} == ({finding} if finding != draw.CONTROL else set())
        if sick:
            assert 4 <= len(sick) <= 7
            assert sick[0] >= 2
            assert sick[-1] <= 21
            assert sick[-1] - sick[0] < 7
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        z_mm = [
            pydicom.dcmread(
                io.BytesIO(archive.read(f"patient1/series1/IM{n:04d}"))
            ).ImagePositionPatient[2]
            for n in (1, 2)
        ]
    assert z_mm == [0, -300 / 24]
