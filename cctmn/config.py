"""Configuration: frozen dataclasses filled from defaults, a TOML file and --set a.b=c.

In: a dataclass, a file, a list of assignments. Out: an instance whose every key is known and whose
every value has the type of its default; anything else is a ConfigError. `fingerprint` condenses
what changes a job's answers, so that a folder is never continued with something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cctmn.classes import COVIDX_CLASSES
from cctmn.errors import ConfigError

C = TypeVar("C")
PRESETS = Path(__file__).parent / "assets" / "presets"


def _knob(
    default: Any, text: str, *, low: float | None = None, among: tuple[str, ...] | None = None
) -> Any:
    """A field with its line of help and the least value, or the values, that make sense."""
    return field(default=default, metadata={"help": text, "low": low, "among": among})


DEVICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class ScoreConfig:
    """What a scoring run may be told; 0 means: chosen from the machine and the work."""

    actors: int = _knob(0, "most scorer processes; 0 = one a GPU, or one a CPU core", low=0)
    gpus: float = _knob(
        -1.0, "GPUs a scorer takes, parts too; 0 = CPU, -1 = one where the cluster has any", low=-1
    )
    batch_size: int = _knob(0, "slices per forward pass; 0 = 16 on a GPU, 4 on a CPU", low=0)
    block_rows: int = _knob(0, "slices per block of work and commit; 0 = 4 to 128", low=0)
    fetch_threads: int = _knob(16, "reads in flight per fetch task", low=1)
    max_error_rate: float = _knob(0.01, "share of error rows above which the exit code is 3", low=0)
    ranked_boxes: bool = _knob(False, "write the N boxes that the classifier saw (large)")
    masks: bool = _knob(False, "write the mask of each lesion, as COCO's run lengths (large)")


@dataclass(frozen=True)
class Optim:
    """How weights move and for how long: Adam as in the paper."""

    epochs: int = _knob(100, "passes over the training slices", low=1)
    steps: int = _knob(0, "optimiser steps after which to stop earlier; 0 = none", low=0)
    batch_size: int = _knob(1, "slices per optimiser step, over all workers", low=1)
    lr: float = _knob(1e-5, "learning rate", low=0)
    weight_decay: float = _knob(1e-3, "of Adam, added to the gradient", low=0)
    schedule: str = _knob("constant", "learning rate over the steps", among=("constant", "cosine"))
    warmup: int = _knob(0, "steps in which the learning rate rises to lr", low=0)
    clip_norm: float = _knob(0.0, "largest norm of the gradient; 0 = not clipped", low=0)
    seed: int = _knob(0, "of new weights, order and sampling", low=0)


@dataclass(frozen=True)
class Hardware:
    """On what training runs; nothing here changes what is learned but by rounding.

    The exception: several slices per forward pass share one loss and, in stage 1, batch norm.
    """

    workers: int = _knob(0, "processes; 0 = one a GPU, or one a CPU core", low=0)
    device: str = _knob(
        "auto", "gpu where they start with the job; auto = those that are there", among=DEVICES
    )
    threads: int = _knob(0, "CPU threads a worker; 0 = its share of the cores", low=0)
    micro_batch: int = _knob(0, "slices per forward pass; 0 = 1 on a CPU, all on a GPU", low=0)
    loaders: int = _knob(0, "processes that read ahead for a worker; 0 = none", low=0)
    precision: str = _knob(
        "auto", "auto = bfloat16 where a GPU has it", among=("auto", "float32", "bfloat16")
    )
    checkpoint_s: float = _knob(20.0, "least seconds between checkpoints; they end epochs", low=0)
    retries: int = _knob(3, "restarts from the last checkpoint after a worker died", low=0)


@dataclass(frozen=True)
class DetectorConfig:
    """Stage 1; the defaults are the paper's (both lesion classes, full model)."""

    backbone: str = _knob("resnet50", "trunk", among=("resnet18", "resnet34", "resnet50"))
    truncation: int = _knob(
        0, "residual layers dropped from the end of resnet18 or resnet34", low=0
    )
    lesions: str = _knob("both", "lesion classes", among=("both", "ggo", "merge"))
    variant: str = _knob("full", "heads = RPN and RoI heads alone", among=("full", "heads"))
    init: str = _knob("imagenet", "weights of the trunk: imagenet, none, or a torchvision .pth")
    valid_fraction: float = _knob(0.1, "of the patients, where no validation set is given", low=0)
    half: bool = _knob(False, "write the final model in float16, half the size")
    note: str = _knob("", "a line for the model's card")
    optim: Optim = Optim()
    hardware: Hardware = Hardware()


@dataclass(frozen=True)
class ClassifierConfig:
    """Stage 2; the defaults are the paper's best variant."""

    classes: tuple[str, ...] = _knob(COVIDX_CLASSES, "image classes, in the order of the logits")
    variant: str = _knob(
        "s+bn", "s = module S; s+bn = and batch-norm weights; all", among=("s", "s+bn", "all")
    )
    loss: str = _knob("bce", "bce = a sigmoid a class", among=("bce", "cross-entropy"))
    ranked: int = _knob(0, "N, boxes that module S sees; 0 = by backbone", low=0)
    hidden: int = _knob(0, "F, width of module S; 0 = by backbone", low=0)
    masks: bool = _knob(False, "keep the detector's mask head, so that lesions have areas")
    cached: bool = _knob(True, "variant s: compute the ranked boxes once, not every epoch")
    valid_fraction: float = _knob(0.1, "of the patients, where no validation set is given", low=0)
    half: bool = _knob(False, "write the final model in float16, half the size")
    note: str = _knob("", "a line for the model's card")
    optim: Optim = Optim(epochs=50, batch_size=8)
    hardware: Hardware = Hardware()


def presets(stage: str) -> dict[str, Path]:
    """The presets that come with cctmn for a stage, by name."""
    return {path.stem: path for path in sorted((PRESETS / stage).glob("*.toml"))}


def load(cls: type[C], *, files: Sequence[Path] = (), sets: Sequence[str] = ()) -> C:
    """An instance of the dataclass from its defaults, then TOML files, then `key=value`s."""
    settings = cls()
    for file in files:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not a TOML file ({error})") from None
        settings = _fill(settings, values, where="")
    values = {}
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write it as key=value")
        target = values
        *parents, last = path.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _parse(value.strip())
    return _fill(settings, values, where="")


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _fill(settings: C, values: Mapping[str, Any], *, where: str) -> C:
    """`settings` with these values in place of its own."""
    assert dataclasses.is_dataclass(settings)
    assert not isinstance(settings, type)
    known = {f.name: f for f in dataclasses.fields(settings)}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}{name}: no such setting; there are {', '.join(known)}")
    checked = {
        name: _check(known[name], value, getattr(settings, name), where=where)
        for name, value in values.items()
    }
    return dataclasses.replace(settings, **checked)


def _check(known: dataclasses.Field[Any], value: Any, before: Any, *, where: str) -> Any:
    name = f"{where}{known.name}"
    if dataclasses.is_dataclass(before):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: is a table; write {name}.key=value")
        return _fill(before, value, where=f"{name}.")
    wanted = type(before)
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple:
        value = tuple(value.split(",")) if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
            raise ConfigError(f"{name}: {value!r} is no list of names; write {name}=one,two")
        return tuple(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name}: {value!r} is not of type {wanted.__name__}")
    low, among = known.metadata.get("low"), known.metadata.get("among")
    if low is not None and not value >= low:
        raise ConfigError(f"{name}: {value!r} is below {low}")
    if among is not None and value not in among:
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(among)}")
    return value


def fingerprint(answers: Mapping[str, Any]) -> str:
    """SHA-256 of the settings that change answers, in a fixed order."""
    text = json.dumps(answers, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
