"""Slices with an image class, in the layouts of the public data sets.

A label comes from a table, a split file, a file name or a folder name. A label that fits no class
stops the job, because a wrong guess would train without anybody noticing.

Reads: a table, or a folder with or without a split file (`LAYOUTS`), local or on S3.
Returns: samples with a class and, where it is known, a patient; the names of what was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from cctmn import store
from cctmn.contract import InputContract
from cctmn.data.class_names import (
    NO_MAP,
    LabelMap,
    check_label_map,
    class_index,
    class_indices,
    find_class,
    synonym_notes,
)
from cctmn.data.covidx import SplitLine, read_split
from cctmn.data.files import IMAGE_SUFFIXES, list_images, stem
from cctmn.data.issues import DatasetIssues, filter_readable, require_samples
from cctmn.data.labels import PATIENT_LABEL
from cctmn.data.patients import nfc
from cctmn.data.slice_names import parse_name
from cctmn.errors import DataError
from cctmn.read.decode import open_image
from cctmn.read.preprocess import to_input
from cctmn.store import ObjectInfo
from cctmn.user_table import is_table, line_of, read_user_table

LAYOUTS: Final = (
    "give a table with uri,label,patient; a folder of images with a split file of COVIDx-CT; a"
    " folder of CLASS_PATIENT_SCAN_SLICE.png with CLASS 0, 1, 2, Normal, CP or NCP; or one"
    " sub-folder per class"
)
# In a training list `path` comes first: these lists had it before they could have a `uri`.
TRAINING_COLUMNS: Final = ("path", "uri", "name")


class SliceSample(NamedTuple):
    """An image and its class."""

    name: str
    image: str  # URI
    label: int  # index into the classes
    patient: str  # "" if unknown
    patient_label: int = -1  # the class of the patient if a table gives it, else -1


@dataclass(frozen=True)
class SliceSet:
    """Samples in the order of the table, split file or names, and what was left out."""

    samples: tuple[SliceSample, ...]
    issues: DatasetIssues
    notes: tuple[str, ...] = ()  # labels that were read as synonyms


def open_slices(
    data: str,
    *,
    split: str | None = None,
    root: str | None = None,
    classes: tuple[str, ...],
    label_map: LabelMap = NO_MAP,
) -> SliceSet:
    """List the slices of a table or folder; a split file selects from the folder.

    Relative names in a table are below `root`, or below the table's own folder. `label_map` says
    which class a label means. Raises DataError if the layout is not recognised, a label is not one
    of the classes, or no slice is left, and ConfigError if the map names an unknown class.
    """
    check_label_map(label_map, classes=classes)
    if root is not None and not is_table(data):
        raise DataError("--root is the folder of a table's slices; leave it out", data)
    if is_table(data):
        if split is not None:
            raise DataError("a table selects its slices itself; leave out the split", data, split)
        opened = _from_table(data, classes, root=root, label_map=label_map)
    else:
        images = list_images(data, suffixes=IMAGE_SUFFIXES, hint=LAYOUTS)
        folders = {name.split("/")[0] for name in images if "/" in name}
        if split is not None:
            lines = read_split(split, classes=classes, label_map=label_map)
            opened = _from_split(images, lines)
        elif any(find_class(f, classes, label_map=label_map) is not None for f in folders):
            opened = _from_names(
                images, parse=_by_folder, data=data, classes=classes, label_map=label_map
            )
        elif any(map(_by_name, images)):
            opened = _from_names(
                images, parse=_by_name, data=data, classes=classes, label_map=label_map
            )
        else:
            raise DataError(f"the layout is not recognised; {LAYOUTS}", data)
    require_samples(opened.samples, issues=opened.issues, where=data)
    return opened


def read_slice(uri: str, *, contract: InputContract) -> npt.NDArray[np.uint8]:
    """Decode an image to the model's input (H x W), exactly as scoring does."""
    return to_input(open_image(store.read_all(uri)).frame(0), contract).pixels


def check_slices(opened: SliceSet, *, contract: InputContract, threads: int) -> SliceSet:
    """Read every slice once and keep the readable ones."""

    def reads(sample: SliceSample) -> bool:
        read_slice(sample.image, contract=contract)
        return True

    kept, issues = filter_readable(
        opened.samples, issues=opened.issues, read=reads, threads=threads
    )
    return SliceSet(kept, issues, opened.notes)


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
            raise DataError(
                "the same slice as another; keep one of them", info.uri, by_key[key].uri
            )
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
    issues = DatasetIssues(missing=tuple(missing), unreadable=tuple(unreadable))
    return SliceSet(tuple(samples), issues)


def _from_names(
    images: Mapping[str, ObjectInfo],
    *,
    parse: Callable[[str], tuple[str, str] | None],
    data: str,
    classes: tuple[str, ...],
    label_map: LabelMap,
) -> SliceSet:
    """Take label and patient from names relative to the folder, by `parse`."""
    samples, unlabelled, unreadable = [], [], []
    known: dict[str, int] = {}
    for name, info in images.items():
        if info.error_code:
            unreadable.append((name, info.error_code))
        elif (named := parse(name)) is not None:
            label, patient = named
            index = class_index(
                label, where=f"{data}, {name}", classes=classes, label_map=label_map
            )
            known[label] = index
            samples.append(SliceSample(name, info.uri, index, nfc(patient)))
        else:
            unlabelled.append(name)
    issues = DatasetIssues(unlabelled=tuple(unlabelled), unreadable=tuple(unreadable))
    notes = synonym_notes(known, classes=classes, label_map=label_map)
    return SliceSet(tuple(samples), issues, tuple(notes))


def _from_table(
    place: str, classes: tuple[str, ...], *, root: str | None, label_map: LabelMap
) -> SliceSet:
    """Read a training list: a column that names the slices, `label`, and perhaps `patient`.

    A column `patient_label` gives the class of a patient.
    """
    given = read_user_table(place, hint="give a table with uri, label and patient")
    names, labels = given.slices(TRAINING_COLUMNS), given.column("label")
    has_patient = "patient" in given.table.column_names
    patients = given.column("patient") if has_patient else [""] * len(names)
    of_patients = given.column(PATIENT_LABEL) if PATIENT_LABEL in given.table.column_names else []
    base = root or store.parent(place)

    def where(row: int) -> str:
        return f"{place} line {line_of(row)}"

    indices, notes = class_indices(labels, classes=classes, label_map=label_map, where=where)
    class_of = {
        text: class_index(
            text,
            where=where(of_patients.index(text)),
            classes=classes,
            label_map=label_map,
        )
        for text in dict.fromkeys(of_patients)
        if text
    }
    samples: dict[str, SliceSample] = {}
    for row, (name, index, patient) in enumerate(zip(names, indices, patients, strict=True)):
        uri = store.below(base, name)
        if uri in samples:
            raise DataError("a slice is listed before; keep one line per slice", where(row), name)
        of_patient = class_of.get(of_patients[row], -1) if of_patients else -1
        samples[uri] = SliceSample(name, uri, index, nfc(patient), of_patient)
    return SliceSet(tuple(samples.values()), DatasetIssues(), tuple(notes))


# --- class and patient from a name


def _by_name(name: str) -> tuple[str, str] | None:
    named = parse_name(name)
    return (named.label, named.patient) if named and named.label else None


def _by_folder(name: str) -> tuple[str, str] | None:
    """Return label and patient from the two top folders.

    If two classes number their patients alike, two patients may be taken for one, but one patient
    is never taken for two.
    """
    match name.split("/")[:-1]:
        case [top, *below]:
            return top, below[0] if below else ""
    return None
