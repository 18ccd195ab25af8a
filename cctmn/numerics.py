"""The device and the precision in which scores are computed, and where an output records them.

Both change the rounding of a network. Module S reads boxes by their rank, and boxes of nearly equal
scores change places, so that a logit can move by more than 1. One output folder therefore has one
kind of device and one precision. They are part of the run's identity and of the metadata of each
file of predictions, which also name the device.
"""

from __future__ import annotations

import functools
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CPU, CUDA = "cpu", "cuda"
DEVICE_NOUNS: Final = {CPU: "CPUs", CUDA: "GPUs"}
FLOAT32, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"
PRECISIONS: Final = (FLOAT32, TF32, BFLOAT16)

KEY: Final = "numerics"  # in run.json and manifest.json
NOT_RECORDED: Final = "not recorded"  # of rows that an older version of cctmn wrote

# Metadata of a file of predictions.
_DEVICE: Final = b"cctmn.device"
_PRECISION: Final = b"cctmn.precision"
_DEVICE_NAME: Final = b"cctmn.device_name"


@dataclass(frozen=True)
class Numerics:
    """The kind of device, "cpu" or "cuda", and the precision of a run."""

    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.precision} on {DEVICE_NOUNS.get(self.device, self.device)}"

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Numerics | None:
        """Return what an identity or a section of JSON records, None if it records nothing."""
        if "device" in table and "precision" in table:
            return cls(str(table["device"]), str(table["precision"]))
        return None

    @classmethod
    def of_file(cls, metadata: Mapping[bytes, bytes] | None) -> Numerics | None:
        """Return what the metadata of a Parquet file record, None if an older version wrote it."""
        held = metadata or {}
        if _DEVICE in held and _PRECISION in held:
            return cls(held[_DEVICE].decode(), held[_PRECISION].decode())
        return None

    def as_metadata(self, device_name: str) -> dict[bytes, bytes]:
        """Return the metadata of a file whose rows were computed on the device of this name."""
        return {
            _DEVICE: self.device.encode(),
            _PRECISION: self.precision.encode(),
            _DEVICE_NAME: device_name.encode(),
        }

    def as_json(self) -> dict[str, str]:
        """Return both as a table of JSON."""
        return {"device": self.device, "precision": self.precision}


def described(section: Mapping[str, Any]) -> str:
    """Return what a section of JSON records, for example "float32 on CPUs (AMD EPYC 7763)"."""
    device, precision = section.get("device"), section.get("precision")
    if not device or not precision:
        return f"device and precision {NOT_RECORDED}"
    names = section.get("devices")
    listed = ", ".join(map(str, names)) if isinstance(names, Mapping) else ""
    text = f"{precision} on {DEVICE_NOUNS.get(str(device), device)}"
    return f"{text} ({listed})" if listed else text


@dataclass(frozen=True)
class Computed:
    """How the rows of an output were computed, as the metadata of its files record it."""

    numerics: tuple[Numerics, ...] = ()  # more than one if outputs were mixed by hand
    devices: Mapping[str, int] = field(default_factory=dict)  # rows by name of the device

    @classmethod
    def of_files(cls, files: Iterable[tuple[Mapping[bytes, bytes] | None, int]]) -> Computed:
        """Read the metadata of each file; with each stands its number of rows."""
        found: dict[Numerics, None] = {}
        devices: Counter[str] = Counter()
        for metadata, rows in files:
            if numerics := Numerics.of_file(metadata):
                found[numerics] = None
            devices[device_name_of_file(metadata)] += rows
        return cls(tuple(sorted(found, key=str)), dict(sorted(devices.items())))

    def as_json(self) -> dict[str, Any]:
        """Return device, precision and names of devices; nothing where nothing is recorded."""
        if not self.numerics:
            return {}
        return {
            "device": " and ".join(sorted({one.device for one in self.numerics})),
            "precision": " and ".join(sorted({one.precision for one in self.numerics})),
            "devices": dict(self.devices),
        }

    @property
    def notes(self) -> list[str]:
        """What a reader must know if not all rows were computed alike."""
        if len(self.numerics) > 1:
            ways = " and ".join(map(str, self.numerics))
            return [
                f"The predictions were computed differently: {ways}. Slices near a tie can have "
                "another class; score all into one new OUT."
            ]
        if self.numerics and (rows := self.devices.get(NOT_RECORDED)):
            return [
                f"Device and precision of {rows:,} rows are not recorded, for an older version of "
                f"cctmn wrote them; the others were computed in {self.numerics[0]}."
            ]
        return []

    def difference(self, other: Computed, *, ours: str, theirs: str) -> list[str]:
        """Return a note if both are known and not alike, e.g. for the outputs of two models."""
        if not self.numerics or not other.numerics or self.numerics == other.numerics:
            return []
        one, two = (" and ".join(map(str, c.numerics)) for c in (self, other))
        return [
            f"{ours} were computed in {one}, {theirs} in {two}: a part of the differences may come "
            "from that."
        ]


def calibration_note(calibration: Mapping[str, Any], computed: Iterable[Numerics]) -> list[str]:
    """Return a note if a model was calibrated on scores that were computed in another way."""
    fitted, others = Numerics.read(calibration), [str(one) for one in computed]
    if fitted is None or not others or others == [str(fitted)]:
        return []
    return [
        f"The model was calibrated on scores computed in {fitted}, these are computed in "
        f"{' and '.join(others)}: its probabilities may be less well calibrated."
    ]


def device_name_of_file(metadata: Mapping[bytes, bytes] | None) -> str:
    """Return the name of the device that computed the rows of a Parquet file."""
    return (metadata or {}).get(_DEVICE_NAME, NOT_RECORDED.encode()).decode()


def precision_of(setting: str) -> str:
    """Return the precision that a setting stands for: "auto" is float32 on every device."""
    return FLOAT32 if setting == "auto" else setting


@functools.cache
def processor_name() -> str:
    """Return the model of this machine's processor, for example "AMD EPYC 7763"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "CPU"
