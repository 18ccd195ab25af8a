"""Synthetic chest-CT studies: no patient, no data set, the same bytes for the same seed.

In: a seed. Out: axial slices in HU (body, lungs with vessels, heart, spine, noise) and DICOM files
of them with series geometry, in a zip. Enough to run every step of the software; not enough to
learn medicine from.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

SIZE_PX: Final = 512
FIELD_MM: Final = 360.0  # side of the reconstructed field
SLICE_MM: Final = 8.0  # distance of slices
CT_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
# Hounsfield units of what is drawn
AIR, LUNG, FAT, MUSCLE, BLOOD, BONE = -1000.0, -840.0, -90.0, 45.0, 40.0, 420.0
NOISE_HU: Final = 18.0
# Written in turn, so that a study of the demo passes more than one decoder.
SYNTAXES: Final = (ExplicitVRLittleEndian, RLELossless, ImplicitVRLittleEndian)
ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the same bytes on any day

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Patient:
    """The shapes of one made-up patient, in parts of the field."""

    width: float
    height: float
    lung: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Patient:
        """Somebody."""
        return cls(
            width=rng.uniform(0.40, 0.46),
            height=rng.uniform(0.29, 0.34),
            lung=rng.uniform(0.9, 1.1),
        )


def slice_hu(patient: Patient, *, height: float, rng: np.random.Generator) -> Image:
    """One axial slice in HU, SIZE_PX square; height 0 is the top of the lungs, 1 the base."""
    y, x = np.mgrid[-0.5 : 0.5 : SIZE_PX * 1j, -0.5 : 0.5 : SIZE_PX * 1j].astype(np.float32)

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> npt.NDArray[np.bool_]:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    hu = np.full((SIZE_PX, SIZE_PX), AIR, np.float32)
    hu[ellipse(0, 0, patient.width, patient.height)] = FAT
    hu[ellipse(0, 0, patient.width - 0.03, patient.height - 0.03)] = MUSCLE
    open_ = patient.lung * (0.55 + 0.45 * np.sin(np.pi * (0.15 + 0.7 * height)))
    for side in (-1, 1):
        lung = ellipse(side * 0.19, 0.0, 0.145 * open_, 0.22 * open_)
        hu[lung] = LUNG
        vessels = np.zeros_like(lung)
        for _ in range(40):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9)
            radius = 0.010 * (1 - reach) + 0.002
            cx = side * (0.19 - 0.05 * (1 - reach)) + 0.13 * open_ * reach * np.cos(angle)
            vessels |= ellipse(cx, 0.20 * open_ * reach * np.sin(angle), radius, radius)
        hu[vessels & lung] = BLOOD
    hu[ellipse(0.03, -0.06, 0.11 * (0.4 + 0.6 * height), 0.10)] = BLOOD
    hu[ellipse(0.0, 0.20, 0.055, 0.05)] = BONE
    hu += rng.normal(0, NOISE_HU, hu.shape).astype(np.float32)
    return np.clip(np.round(hu), -1024, 3071)


def dicom_bytes(
    hu: Image, *, patient: int, number: int, seed: int, syntax: UID = ExplicitVRLittleEndian
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
    dataset.ImagePositionPatient = [-FIELD_MM / 2, -FIELD_MM / 2, -SLICE_MM * number]
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


def write_archive(path: Path, *, patients: int, slices: int, seed: int) -> int:
    """A zip of patients x slices DICOM files, as a hospital exports it; the number of slices."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for p in range(patients):
            patient = Patient.drawn(rng)
            for n in range(slices):
                hu = slice_hu(patient, height=(n + 0.5) / slices, rng=rng)
                syntax = SYNTAXES[(p + n) % len(SYNTAXES)]
                name = zipfile.ZipInfo(f"patient{p + 1}/series1/IM{n + 1:04d}", ZIP_TIME)
                name.compress_type = zipfile.ZIP_DEFLATED
                data = dicom_bytes(hu, patient=p, number=n, seed=seed, syntax=syntax)
                archive.writestr(name, data)
    return patients * slices
