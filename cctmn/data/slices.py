"""Slices with an image class, in the layouts that the public data sets come in.

In: a table, or a folder with or without a split file (`LAYOUTS`), local or on S3. Out: samples with
a class and, where it is known, a patient. Labels come from names of the data sets or from the
classes themselves; one that fits no class stops the job, since a guess would train silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cctmn import store
from cctmn.classes import COVIDX_CLASSES
from cctmn.data.files import IMAGE_SUFFIXES, list_images, read_text, stem
from cctmn.data.issues import Problems, sift, usable
from cctmn.errors import DataError
from cctmn.read.decode import open_image
from cctmn.read.intensity import InputContract, to_input
from cctmn.store import ObjectInfo
from cctmn.user_table import is_table, line_of, read_user_table

LAYOUTS: Final = (
    "give a .csv of path,label,patient; a folder of images with a split file of COVIDx-CT; a folder"
    " of CLASS_PATIENT_SCAN_SLICE.png with CLASS 0, 1, 2, Normal, CP or NCP; or one sub-folder for"
    " each class"
)
# What the data sets call a class: ours, COVIDx-CT's prefix, iCTCF's folder.
_SYNONYMS: Final = (("control", "normal", "nct"), ("pneumonia", "cp"), ("covid", "ncp", "pct"))
# In a training list `path` comes first: these lists had it before they could have a `uri`.
TRAINING_COLUMNS: Final = ("path", "uri", "name")
BOX_COLUMNS: Final = 4
_NAME: Final = re.compile(r"(\d|normal|cp|ncp)_([^_]+)_([^_]+)_([^_]+)", re.IGNORECASE)


class SliceSample(NamedTuple):
    """An image and its class."""

    name: str
    image: str  # URI
    label: int  # index into the classes
    patient: str  # "" if unknown


class SplitLine(NamedTuple):
    """A line of a split file: a slice, wherever its image is."""

    name: str
    key: str  # the same for Normal_1728_1013_0023.png and 0_1728_1013_0023.png
    label: int
    patient: str
    scan: str
    body: tuple[int, ...]  # box x0 y0 x1 y1 of the body, px; empty if not given


@dataclass(frozen=True)
class SliceSet:
    """Samples in order of the table, split file or names, and what was left out."""

    samples: tuple[SliceSample, ...]
    problems: Problems


class Named(NamedTuple):
    """What a name CLASS_PATIENT_SCAN_SLICE says."""

    label: str
    patient: str
    scan: str
    key: str


def open_slices(
    data: str, *, split: str | None = None, root: str | None = None, classes: tuple[str, ...]
) -> SliceSet:
    """List the slices of a table or folder; a split file selects from the folder.

    Relative names in a table are below `root`, or below the table's own folder. Raises DataError if
    the layout is not recognised, a label is not one of the classes, or no slice is left.
    """
    if root is not None and not is_table(data):
        raise DataError(f"{data}: --root is the folder of a table's slices; leave it out")
    if is_table(data):
        if split is not None:
            raise DataError(f"{data}: a table selects its slices itself; leave out {split}")
        found = _from_table(data, classes, root=root)
    else:
        images = list_images(data, suffixes=IMAGE_SUFFIXES, hint=LAYOUTS)
        folders = {name.split("/")[0] for name in images if "/" in name}
        if split is not None:
            found = _from_split(images, read_split(split, classes=classes))
        elif any(_index(folder, classes) is not None for folder in folders):
            found = _from_names(images, tell=_by_folder, data=data, classes=classes)
        elif any(map(_by_name, images)):
            found = _from_names(images, tell=_by_name, data=data, classes=classes)
        else:
            raise DataError(f"{data}: the layout cannot be told; {LAYOUTS}")
    return SliceSet(usable(found.samples, problems=found.problems, where=data), found.problems)


def read_split(split: str, *, classes: tuple[str, ...]) -> tuple[SplitLine, ...]:
    """The slices that a split file lists, as `NAME CLASS [box]` or as names that tell the class.

    CLASS and digits are those of COVIDx-CT, whatever the order of `classes`.
    """
    lines: dict[str, SplitLine] = {}
    for number, text in enumerate(read_text(split).splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{split} line {number}"
        name, *columns = text.split()
        named = parse_name(name)
        label = _covidx(columns[0]) if columns else named.label if named else ""
        if not label:
            raise DataError(f"{where}: {name} tells no class; write NAME CLASS")
        if named and named.label != label:
            raise DataError(f"{where}: {name} is listed as {label}; mend the line")
        key = named.key if named else stem(name)
        if key in lines:
            raise DataError(f"{where}: {name} is listed before; keep one line of each slice")
        index = class_index(label, where=f"{where}, {name}", classes=classes)
        patient, scan = (named.patient, named.scan) if named else ("", "")
        body = _body(columns[1:], where=f"{where}, {name}")
        lines[key] = SplitLine(name, key, index, patient, scan, body)
    if not lines:
        raise DataError(f"{split}: names no slice; write one name a line")
    return tuple(lines.values())


def read_slice(uri: str, *, contract: InputContract) -> npt.NDArray[np.uint8]:
    """Decode the image to the model's input (H x W) just as scoring does."""
    return to_input(open_image(store.read_all(uri)).frame(0), contract).pixels


def check_slices(found: SliceSet, *, contract: InputContract, threads: int) -> SliceSet:
    """Read all slices once and keep those that can be read."""

    def reads(sample: SliceSample) -> bool:
        read_slice(sample.image, contract=contract)
        return True

    kept, problems = sift(found.samples, problems=found.problems, read=reads, threads=threads)
    return SliceSet(kept, problems)


# --- layouts


def _from_split(images: Mapping[str, ObjectInfo], lines: tuple[SplitLine, ...]) -> SliceSet:
    wanted = {line.key for line in lines}
    by_key: dict[str, ObjectInfo] = {}
    for name, info in images.items():
        named = parse_name(name)
        key = named.key if named else stem(name)
        if key not in wanted:
            continue
        if key in by_key:
            raise DataError(f"{info.uri}: the same slice as {by_key[key].uri}; keep one of them")
        by_key[key] = info
    samples, missing, unreadable = [], [], []
    for line in lines:
        match by_key.get(line.key):
            case None:
                missing.append(line.name)
            case ObjectInfo(uri=uri, error_code=""):
                samples.append(SliceSample(line.name, uri, line.label, line.patient))
            case ObjectInfo(error_code=code):
                unreadable.append((line.name, code))
    problems = Problems(missing=tuple(missing), unreadable=tuple(unreadable))
    return SliceSet(tuple(samples), problems)


def _from_names(
    images: Mapping[str, ObjectInfo],
    *,
    tell: Callable[[str], tuple[str, str] | None],
    data: str,
    classes: tuple[str, ...],
) -> SliceSet:
    """Slices whose names relative to the folder tell label and patient."""
    samples, unlabelled, unreadable = [], [], []
    for name, info in images.items():
        if info.error_code:
            unreadable.append((name, info.error_code))
        elif told := tell(name):
            label = class_index(told[0], where=f"{data}, {name}", classes=classes)
            samples.append(SliceSample(name, info.uri, label, told[1]))
        else:
            unlabelled.append(name)
    problems = Problems(unlabelled=tuple(unlabelled), unreadable=tuple(unreadable))
    return SliceSet(tuple(samples), problems)


def _from_table(place: str, classes: tuple[str, ...], *, root: str | None) -> SliceSet:
    """Read a training list: a column that names the slices, `label`, and perhaps `patient`."""
    given = read_user_table(place, hint="give a table with uri, label and patient")
    names, labels = given.slices(TRAINING_COLUMNS), given.column("label")
    has_patient = "patient" in given.table.column_names
    patients = given.column("patient") if has_patient else [""] * len(names)
    base = root or store.parent(place)
    samples: dict[str, SliceSample] = {}
    for row, (name, label, patient) in enumerate(zip(names, labels, patients, strict=True)):
        where = f"{place} line {line_of(row)}"
        if not label:
            raise DataError(f"{where}: no label; fill it in")
        uri = store.below(base, name)
        if uri in samples:
            raise DataError(f"{where}: {name} is listed before; keep one line per slice")
        index = class_index(label, where=where, classes=classes, numbers=True)
        samples[uri] = SliceSample(name, uri, index, patient)
    return SliceSet(tuple(samples.values()), Problems())


# --- names and places


def parse_name(name: str) -> Named | None:
    """What a name of COVIDx-CT, or of the author's list, says; None for any other."""
    match = _NAME.fullmatch(stem(name))
    if match is None:
        return None
    label, patient, scan, number = match.groups()
    label = _covidx(label)
    # Patient numbers of COVIDx-CT v1 are unique over its classes, so the number alone is the
    # patient: should another set use one twice, its splits are refused rather than mixed.
    return Named(label, patient, scan, f"{label}_{patient}_{scan}_{number}")


def _covidx(label: str) -> str:
    """Our name of a class of COVIDx-CT, given by digit or prefix; others as they are."""
    if label in ("0", "1", "2"):
        return COVIDX_CLASSES[int(label)]
    label = label.lower()
    return next((names[0] for names in _SYNONYMS if label in names), label)


def _by_name(name: str) -> tuple[str, str] | None:
    named = parse_name(name)
    return named and (named.label, named.patient)


def _by_folder(name: str) -> tuple[str, str] | None:
    """Label and patient by folders; where classes number their patients alike, two may pass for
    one patient, but never one for two.
    """
    match name.split("/")[:-1]:
        case [top, *below]:
            return top, below[0] if below else ""
    return None


def _index(label: str, classes: tuple[str, ...]) -> int | None:
    """Index of the class that the label means, by its own name or a synonym."""
    label = label.lower()
    same = next((names for names in _SYNONYMS if label in names), (label,))
    return next((i for i, name in enumerate(classes) if name.lower() in same), None)


def class_index(label: str, *, where: str, classes: tuple[str, ...], numbers: bool = False) -> int:
    """Index of the class that a label names, by a synonym too; with `numbers` a digit is an index.

    Raises DataError, which names `where`, for a label that is none of the classes.
    """
    if numbers and label.isascii() and label.isdigit() and int(label) < len(classes):
        return int(label)
    index = _index(label, classes)
    if index is None:
        raise DataError(
            f"{where}: label {label!r} is none of the classes {', '.join(classes)}; "
            "set the classes or leave the slice out"
        )
    return index


def _body(columns: list[str], *, where: str) -> tuple[int, ...]:
    """The body's box of a line of COVIDx-CT; whatever else stands there is of no use here."""
    if len(columns) != BOX_COLUMNS:
        return ()
    if not all(column.isascii() and column.isdigit() for column in columns):
        raise DataError(f"{where}: a box is four whole numbers, x0 y0 x1 y1; mend the line")
    return tuple(map(int, columns))
