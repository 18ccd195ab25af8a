"""The settings and presets of a scoring or training run.

Settings are frozen dataclasses. `load` fills them from their defaults, then from a preset, from
TOML files and from `--set key=value`, and refuses what is not valid with a ConfigError. `SETTINGS`
and `describe` list every setting, for `--help`, `cctmn settings`, the documentation and errors.
This module imports nothing heavy, so that a mistyped setting is reported before torch or Ray loads.

Reads: TOML files, `cctmn/assets/presets/<stage>/*.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from cctmn.classes import BACKBONES, COVIDX_CLASSES, LESION_MODES
from cctmn.errors import ConfigError
from cctmn.numerics import PRECISIONS
from cctmn.settings import describe, flatten, nearest, parse, replace, setting, to_text

C = TypeVar("C")
PRESETS: Final = Path(__file__).parent / "assets" / "presets"
DEVICES: Final = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `cctmn score`. Where 0 is the default, cctmn chooses from machine and work."""

    actors: int = setting(
        0,
        "Largest number of scorer processes; 0 = one per GPU, or one per CPU core.",
        unit="processes",
        low=0,
    )
    gpus: float = setting(
        -1.0,
        "GPUs per scorer (fractions allowed); 0 = run on the CPU; -1 = one GPU if the cluster has "
        "any, otherwise the CPU.",
        unit="GPUs",
        low=-1,
    )
    batch_size: int = setting(
        0, "Slices per forward pass; 0 = 16 on a GPU, 4 on a CPU.", unit="slices", low=0
    )
    block_rows: int = setting(
        0,
        "Slices per block of work; 0 = 4 to 128, depending on the number of slices.",
        unit="slices",
        low=0,
    )
    commit_rows: int = setting(
        0,
        "Slices per file of predictions, about as many as a kill loses; 0 = one block on CPUs or "
        "if block_rows is given, otherwise 2,000 to 8,000 on GPUs.",
        unit="slices",
        low=0,
    )
    fetch_threads: int = setting(
        16, "Concurrent reads from storage per fetch task.", unit="threads", low=1
    )
    max_error_rate: float = setting(
        0.01, "Fraction of errors above which the exit code is 3.", low=0, high=1
    )
    ranked_boxes: bool = setting(
        False, "Also write the N ranked boxes that the classifier received (large)."
    )
    masks: bool = setting(False, "Also write the mask of each lesion, as COCO run lengths (large).")
    lesion_nms_iou: float = setting(
        0.0,
        "NMS threshold of the reported lesions: of two that overlap by a larger IoU, the less "
        "certain one is dropped; 0 = that of the model's card, which is 0.5 as published.",
        low=0,
        high=1,
    )
    precision: str = setting(
        "auto",
        "Number format of the network; auto = float32 on every device; tf32, on a GPU only, and "
        "bfloat16 round more and can change scores and classes.",
        choices=("auto", *PRECISIONS),
    )
    gpu_wait_min: float = setting(
        60.0,
        "How long to wait for a first GPU that the cluster does not have yet.",
        unit="minutes",
        low=0,
    )


@dataclass(frozen=True)
class Optim:
    """Settings of the optimiser, which is Adam as in the paper, and of the training's length."""

    epochs: int = setting(100, "Passes over the training slices.", unit="epochs", low=1)
    steps: int = setting(
        0, "Stop after this many optimiser steps; 0 = train all epochs.", unit="steps", low=0
    )
    batch_size: int = setting(
        1, "Slices per optimiser step, summed over all workers.", unit="slices", low=1
    )
    lr: float = setting(1e-5, "Learning rate.", low=0)
    weight_decay: float = setting(1e-3, "Adam's weight decay, added to the gradient.", low=0)
    schedule: str = setting(
        "constant", "How the learning rate changes over the steps.", choices=("constant", "cosine")
    )
    warmup: int = setting(0, "Steps over which the learning rate rises to lr.", unit="steps", low=0)
    clip_norm: float = setting(
        0.0, "Largest norm of the gradient; 0 = the gradient is not clipped.", low=0
    )
    seed: int = setting(
        0, "Seed of new weights, of the order of slices and of the sampling of boxes.", low=0
    )


@dataclass(frozen=True)
class Hardware:
    """Settings of the machines. They do not change what is learned, except for rounding.

    One exception: slices that share a forward pass share one loss and, in stage 1, the statistics
    of batch norm, so `micro_batch` does change the result.
    """

    workers: int = setting(
        0, "Training processes; 0 = one per GPU, or one per CPU core.", unit="processes", low=0
    )
    device: str = setting(
        "auto",
        "auto = GPUs if the cluster has any now; gpu = ask for GPUs, also on a cluster that starts "
        "them only on demand; cpu = no GPU.",
        choices=DEVICES,
    )
    threads: int = setting(
        0, "CPU threads per worker; 0 = divide the cores evenly.", unit="threads", low=0
    )
    micro_batch: int = setting(
        0, "Slices per forward pass; 0 = 1 on a CPU, all on a GPU.", unit="slices", low=0
    )
    loaders: int = setting(
        0, "Processes per worker that load slices ahead; 0 = none.", unit="processes", low=0
    )
    precision: str = setting(
        "auto",
        "Number format of the forward pass; auto = bfloat16 on a GPU that supports it, otherwise "
        "float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    checkpoint_s: float = setting(
        20.0,
        "Shortest time between two checkpoints; a checkpoint is written at the end of an epoch.",
        unit="seconds",
        low=0,
    )
    retries: int = setting(
        3, "Restarts from the last checkpoint after a worker died.", unit="restarts", low=0
    )
    gpu_wait_min: float = setting(
        60.0,
        "How long to wait for the GPUs of all workers if the cluster has too few or all are busy.",
        unit="minutes",
        low=0,
    )


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of `cctmn train detector` (stage 1). The defaults are the paper's full model."""

    backbone: str = setting("resnet50", "Backbone network.", choices=BACKBONES)
    truncation: int = setting(
        0,
        "Residual layers dropped from the end of resnet18 or resnet34: 0, 1 or 2. A resnet50 keeps "
        "all.",
        unit="layers",
        low=0,
    )
    lesions: str = setting(
        "both",
        "Lesion classes: both = GGO and consolidation, merge = one class for both, ggo = GGO only.",
        choices=tuple(LESION_MODES),
    )
    variant: str = setting(
        "full",
        "full = train all weights; heads = only RPN and RoI heads.",
        choices=("full", "heads"),
    )
    init: str = setting(
        "imagenet",
        "Initial backbone weights: imagenet, none, or the path of a torchvision .pth file.",
    )
    valid_fraction: float = setting(
        0.1,
        "Fraction of the patients of each class kept for validation if no validation set is given.",
        low=0,
        high=1,
    )
    validate_every: int = setting(
        1, "Validate after every so many epochs, and after the last one.", unit="epochs", low=1
    )
    validate_slices: int = setting(
        0,
        "Validate on this many of the validation slices, drawn once over classes and patients; 0 = "
        "all.",
        unit="slices",
        low=0,
    )
    half: bool = setting(False, "Write the final model in float16, half the size.")
    note: str = setting("", "A note to put on the model's card.")
    optim: Optim = Optim()
    hardware: Hardware = Hardware()


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of `cctmn train classifier` (stage 2). The defaults are the paper's best variant."""

    classes: tuple[str, ...] = setting(COVIDX_CLASSES, "Image classes, in the order of the logits.")
    variant: str = setting(
        "s+bn",
        "Weights to train: s = module S; s+bn = module S and batch norm; all = every weight.",
        choices=("s", "s+bn", "all"),
    )
    loss: str = setting(
        "bce",
        "bce = binary cross-entropy with one sigmoid per class; cross-entropy = softmax.",
        choices=("bce", "cross-entropy"),
    )
    ranked: int = setting(
        0, "N, the number of boxes that module S receives; 0 = by backbone.", unit="boxes", low=0
    )
    hidden: int = setting(0, "F, the width of module S; 0 = by backbone.", unit="features", low=0)
    masks: bool = setting(
        False, "Keep the detector's mask head, so that the classifier reports lesion areas."
    )
    cached: bool = setting(
        True, "With variant s, compute the ranked boxes once instead of in every epoch."
    )
    valid_fraction: float = setting(
        0.1,
        "Fraction of the patients of each class kept for validation if no validation set is given.",
        low=0,
        high=1,
    )
    validate_every: int = setting(
        1, "Validate after every so many epochs, and after the last one.", unit="epochs", low=1
    )
    validate_slices: int = setting(
        0,
        "Validate on this many of the validation slices, drawn once over classes and patients; 0 = "
        "all.",
        unit="slices",
        low=0,
    )
    half: bool = setting(False, "Write the final model in float16, half the size.")
    note: str = setting("", "A note to put on the model's card.")
    optim: Optim = Optim(epochs=50, batch_size=8)
    hardware: Hardware = Hardware()


# The commands that have settings, by the name that `cctmn settings` takes.
SETTINGS: Final[Mapping[str, type[Any]]] = {
    "score": ScoreConfig,
    "detector": DetectorConfig,
    "classifier": ClassifierConfig,
}


def markdown(name: str) -> str:
    """Return the settings and presets of `score`, `detector` or `classifier` as Markdown tables."""
    lines = ["| Setting | Default | Allowed | Unit | Meaning |", "|---|---|---|---|---|"]
    for one in describe(SETTINGS[name]):
        allowed = one.allowed.replace(" | ", ", ")
        default = to_text(one.default)
        unit = one.unit or "-"
        lines.append(f"| `{one.key}` | `{default}` | {allowed} | {unit} | {one.help} |")
    if about := preset_summaries(name):
        lines += ["", "| Preset | Use |", "|---|---|"]
        lines += [f"| `{preset}` | {text} |" for preset, text in about.items()]
    return "\n".join(lines) + "\n"


def presets(stage: str) -> dict[str, Path]:
    """Return the presets that come with cctmn for a stage, by name; scoring has none."""
    return {path.stem: path for path in sorted((PRESETS / stage).glob("*.toml"))}


def preset_summaries(stage: str) -> dict[str, str]:
    """Return what each preset of a stage is for: the comment in the first line of its file."""
    return {
        name: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for name, path in presets(stage).items()
    }


def preset_file(stage: str, name: str) -> Path:
    """Return the file of a preset. Raises ConfigError, with the nearest name, if there is none."""
    known = presets(stage)
    if name not in known:
        raise ConfigError(
            f"--preset {name}: the {stage} has no such preset"
            f"{nearest(name, known)}; choose from {', '.join(known)}"
        )
    return known[name]


def load(
    cls: type[C], *, preset: str | None = None, files: Sequence[Path] = (), sets: Sequence[str] = ()
) -> C:
    """Fill the dataclass from its defaults, then a preset, then TOML files, then `key=value`s.

    The later source wins. Raises ConfigError for a preset, file, key or value that is not valid.
    """
    name = _name_of(cls)
    settings = cls()
    if preset is not None:
        files = [preset_file(name, preset), *files]
    for file in files:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot be read ({error.strerror}); check its name and rights", file
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"not a TOML file ({error}); correct it", file) from None
        for key, value in flatten(values):
            settings = replace(settings, key, value, command=name, where=f"{file}: ")
    for text in sets:
        key, equals, written = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: not a setting; write it as key=value")
        value = parse(written.strip())
        settings = replace(settings, key.strip(), value, command=name, where="--set ")
    return settings


def _name_of(cls: type[Any]) -> str:
    return next(name for name, known in SETTINGS.items() if known is cls)
