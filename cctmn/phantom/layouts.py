"""Phantom slices as files: the labelled layouts to train on, and studies as a hospital sends them.

The same arguments give the same bytes; other seeds give other patients.

Writes: CNCB's `imgs/` and `masks/`; COVIDx-CT's pictures and split file; or a zip of DICOM studies
with geometry, several transfer syntaxes, and the truth in a table beside it.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from cctmn.contract import InputContract
from cctmn.errors import ConfigError
from cctmn.phantom import draw
from cctmn.phantom.draw import Patient, PhantomSlice
from cctmn.read.preprocess import window

FIELD_MM: Final = 360.0  # side of the reconstructed field
SLICE_MM: Final = 8.0  # distance of slices, where a study is no whole scan
LUNGS_MM: Final = 300.0  # height of the lungs
CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
# Written in turn, so that a study of the demo passes more than one decoder.
SYNTAXES: Final = (
    ExplicitVRLittleEndian,
    RLELossless,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
)
ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the same bytes on any day
SLICES_A_PATIENT: Final = 4  # in the layouts; splits are by patient
PREFIXES: Final = {draw.CONTROL: "Normal", draw.PNEUMONIA: "CP", draw.COVID: "NCP"}
TRUTH: Final = ("member", "patient", "finding", "ggo_px", "consolidation_px")


def write_lesions(folder: Path, *, count: int, seed: int, recipe: str = "standard") -> int:
    """`count` slices with a visible lesion as CNCB lays them out; returns the number."""
    images, masks = folder / "imgs", folder / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    findings = (draw.COVID, draw.PNEUMONIA)
    drawn = _drawn(count, findings=findings, seed=seed, recipe=recipe)
    for _, patient, number, slice_ in drawn:
        name = f"{patient}_{number}.png"
        _picture(slice_).save(images / name)
        Image.fromarray(slice_.labels).save(masks / name)
    return count


def write_slices(folder: Path, *, count: int, seed: int, recipe: str = "standard") -> int:
    """`count` slices, the classes in turn, named as in COVIDx-CT, and `split.txt` with their boxes.

    A slice's box is its body's, as there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    drawn = _drawn(count, findings=tuple(PREFIXES), seed=seed, recipe=recipe)
    for finding, patient, number, slice_ in drawn:
        name = f"{PREFIXES[finding]}_{patient}_{patient}_{number:04d}.png"
        _picture(slice_).save(folder / name)
        rows, cols = (np.flatnonzero((slice_.hu > -500).any(axis)) for axis in (1, 0))
        box = f"{cols[0]} {rows[0]} {cols[-1] + 1} {rows[-1] + 1}"
        lines.append(f"{name} {list(PREFIXES).index(finding)} {box}")
    (folder / "split.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return count


def _drawn(
    count: int, *, findings: tuple[str, ...], seed: int, recipe: str
) -> Iterator[tuple[str, int, int, PhantomSlice]]:
    """`count` times finding, patient's number, slice's number, slice; the findings in turn."""
    if recipe not in draw.RECIPES:
        raise ConfigError(f"recipe {recipe!r} is unknown; use one of {', '.join(draw.RECIPES)}")
    rng = np.random.default_rng(seed)
    patients: list[Patient] = []
    for i in range(count):
        turn, which = i // len(findings), i % len(findings)
        if turn % SLICES_A_PATIENT == 0:
            if which == 0:
                patients = []
            patients.append(
                Patient.drawn(rng, finding=findings[which], recipe=draw.RECIPES[recipe])
            )
        number = seed * 10_000 + turn // SLICES_A_PATIENT * len(findings) + which
        slice_ = draw.visible_slice(patients[which], rng=rng)
        yield findings[which], number, turn % SLICES_A_PATIENT, slice_


def _picture(slice_: PhantomSlice) -> Image.Image:
    return Image.fromarray(window(slice_.hu, InputContract()))


def write_archive(
    path: Path, *, patients: int, slices: int, seed: int, extent: float | None = None
) -> list[dict[str, object]]:
    """Write a zip of patients x slices DICOM files and return the truth, one row per slice.

    The truth is written beside it too, as `<name>-truth.csv`. With `extent`, a patient is a whole
    scan: the lesions take that fraction of the lungs' height, and the other slices are clean.
    """
    slice_mm = SLICE_MM if extent is None else LUNGS_MM / slices
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    truth: list[dict[str, object]] = []
    findings = (draw.COVID, draw.PNEUMONIA, draw.CONTROL)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for p in range(patients):
            patient = Patient.drawn(rng, finding=findings[p % len(findings)])
            if extent is not None:
                patient = patient.confined(extent, rng=rng)
            for n in range(slices):
                slice_ = draw.slice_of(patient, height=(n + 0.5) / slices, rng=rng)
                syntax = SYNTAXES[(p + n) % len(SYNTAXES)]
                name = zipfile.ZipInfo(f"patient{p + 1}/series1/IM{n + 1:04d}", ZIP_TIME)
                name.compress_type = zipfile.ZIP_DEFLATED
                data = dicom_bytes(
                    slice_.hu, patient=p, number=n, seed=seed, syntax=syntax, slice_mm=slice_mm
                )
                archive.writestr(name, data)
                ggo, dense = (
                    int(np.count_nonzero(slice_.labels == value))
                    for value in (draw.GGO, draw.CONSOLIDATION)
                )
                row = (name.filename, p + 1, slice_.finding, ggo, dense)
                truth.append(dict(zip(TRUTH, row, strict=True)))
    with truth_path(path).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, TRUTH)
        table.writeheader()
        table.writerows(truth)
    return truth


def truth_path(archive: Path) -> Path:
    """Return the path of the truth of an archive."""
    return archive.with_name(f"{archive.stem}-truth.csv")


def dicom_bytes(
    hu: draw.Image,
    *,
    patient: int,
    number: int,
    seed: int,
    syntax: UID = ExplicitVRLittleEndian,
    slice_mm: float = SLICE_MM,
) -> bytes:
    """A CT Image Storage file of the slice: 12 bits, slope 1, intercept -1024, axial."""
    uid = f"1.2.826.0.1.3680043.8.498.{seed}.{patient + 1}"  # pydicom's root for examples
    dataset = Dataset()
    dataset.SOPClassUID = CT_IMAGE
    dataset.SOPInstanceUID = f"{uid}.1.{number + 1}"
    dataset.StudyInstanceUID = uid
    dataset.SeriesInstanceUID = f"{uid}.1"
    dataset.PatientID = f"PHANTOM{patient + 1:04d}"
    dataset.PatientName = f"Phantom^{patient + 1}"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = number + 1
    dataset.ImagePositionPatient = [-FIELD_MM / 2, -FIELD_MM / 2, -slice_mm * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [FIELD_MM / hu.shape[0], FIELD_MM / hu.shape[1]]
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = (hu + 1024).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
