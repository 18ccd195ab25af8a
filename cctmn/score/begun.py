"""What an output folder records of the job that began it, and what follows for a job that resumes.

The reader, the kind of device and the precision of an OUT never change. A job that leaves them open
takes those of the OUT; one that asks for others is refused.

Reads: OUT/private/run.json, or the metadata of OUT/predictions if that is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cctmn import numerics, runtime, store, tables
from cctmn.config import ScoreConfig
from cctmn.errors import ConfigError, DataError, PreflightError, ResumeError
from cctmn.identity import RunIdentity
from cctmn.numerics import CPU, CUDA, FLOAT32, TF32, Numerics
from cctmn.reporter import Reporter


@dataclass(frozen=True)
class Begun:
    """The record of an output folder. Without one, as in a new folder, all is as by default."""

    reader: int | None = None
    numerics: Numerics | None = None
    # False in a folder that a version began which did not record the numerics: its identity, and
    # so the fingerprint in its files, stays without them.
    has_numerics_in_identity: bool = True

    @property
    def is_unrecorded(self) -> bool:
        """Whether there are scores of which nobody knows the device."""
        return self.numerics is None and not self.has_numerics_in_identity


def read(out: str) -> Begun:
    """Return what an output folder, given by URI, records; nothing for one without a row."""
    files = tables.parquet_files(store.join(out, "predictions"))
    if not files:
        return Begun()
    run = store.read_optional(store.join(out, "private", "run.json"))
    if run is None:
        return _from_files(files)
    document = json.loads(run)
    values = RunIdentity.read(document).values
    reader = values.get("reader")
    in_identity = Numerics.read(values)
    return Begun(
        reader=reader if isinstance(reader, int) and reader > 0 else None,
        numerics=in_identity or Numerics.read(document.get(numerics.KEY) or {}),
        has_numerics_in_identity=in_identity is not None,
    )


def _from_files(files: Sequence[str]) -> Begun:
    found: set[Numerics | None] = set()
    for uri in files:
        try:
            found.add(Numerics.of_file(tables.schema(uri).metadata))
        except DataError:
            continue  # a damaged file; it is removed later
    known = [one for one in found if one is not None]
    return Begun(numerics=known[0] if known else None, has_numerics_in_identity=None not in found)


def device_of(begun: Begun, *, gpus: float, precision: str, name: str) -> str:
    """Return the kind of device of a job, "" if the cluster decides it.

    `gpus` is the setting, below 0 if it leaves the choice open; `name` is OUT as the user gave it.
    Raises ResumeError if the folder has another precision or device, ConfigError if the device
    does not have the precision.
    """
    asked = "" if gpus < 0 else CUDA if gpus else CPU
    held = begun.numerics
    if held is None:
        if begun.is_unrecorded and precision != FLOAT32:
            raise ResumeError(
                f"was begun by a version that computed in float32 only, this job is to compute in "
                f"{precision}; use a new OUT, or --set precision=float32",
                name,
            )
        check_precision(precision, device=asked)
        return asked
    ours = Numerics(asked or held.device, precision)
    if ours != held:
        options = []
        if ours.precision != held.precision:
            options.append(f"--set precision={held.precision}")
        if ours.device != held.device:
            options.append(f"--device {'gpu' if held.device == CUDA else 'cpu'}")
        raise ResumeError(
            f"holds scores in {held}, this job is to compute in {ours}; use a new OUT, or give "
            f"{' '.join(options)}",
            name,
        )
    return ours.device


def check_precision(precision: str, *, device: str) -> None:
    """Raise ConfigError if this kind of device, "" for one that is not chosen, lacks it."""
    if precision == TF32 and device == CPU:
        raise ConfigError(
            "precision: only a GPU computes in tf32, and the scorers are on CPUs; use "
            "--set precision=float32, or --device gpu"
        )


def gpus_per_scorer(
    settings: ScoreConfig, *, device: str, available: runtime.Resources, report: Reporter
) -> float:
    """Return the GPUs per scorer on this cluster, 0 for the CPU.

    `device` is that of the folder, "" in a new one. Raises PreflightError if it is a GPU and Ray
    was started on a machine without one.
    """
    if settings.gpus >= 0:
        return settings.gpus
    has_gpu = available.gpus >= 1
    if device == CUDA and not has_gpu and available.started_here:
        raise PreflightError(
            "GPU: OUT holds scores that were computed on GPUs, and Ray finds none on this machine; "
            "check `nvidia-smi`, resume on a machine with a GPU, or use a new OUT"
        )
    if device == CPU and has_gpu:
        report("OUT was begun on CPUs, so the GPUs are not used; a new OUT would use them")
    return float(device == CUDA or (not device and has_gpu))
