"""A model's card: architecture, input contract, rules and provenance, without the weights.

`card.json` is read into a checked `Card` without importing torch. A card with an unknown key is
refused, because a newer key may change the meaning of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from cctmn import store
from cctmn.classes import BACKBONES
from cctmn.contract import InputContract
from cctmn.errors import ModelError, ObjectError

FORMAT: Final = 1
SHIPPED: Final = "cctmn:"  # cctmn:demo is the model `demo` that comes with cctmn
ASSETS: Final = Path(__file__).parents[1] / "assets" / "models"
WEIGHTS: Final = "weights.safetensors"
CARD: Final = "card.json"
CHECKPOINTS: Final = (
    ".pth",
    ".pt",
    ".ckpt",
)  # endings of files that users give in place of a model folder
ACTIVATIONS: Final = ("sigmoid", "softmax")
NAME: Final = re.compile("[a-z][a-z0-9_]*")  # of a class that becomes a column

ADDED: Final = frozenset({"calibration"})  # keys that cards of older versions lack
CALIBRATION: Final[Mapping[str, tuple[type, ...]]] = {
    "temperature": (float, int),
    "top_m": (int,),
    "patient_intercept": (float, int),
    "patient_slope": (float, int),
}

# Entries of the provenance that say how a model was trained.
TRAINING: Final = ("stage", "settings", "slices", "valid_slices", "validation", "epoch")

RANKED: Final[Mapping[str, int]] = {"resnet18": 128, "resnet34": 128, "resnet50": 256}  # N
HIDDEN: Final[Mapping[str, int]] = {"resnet18": 512, "resnet34": 512, "resnet50": 1024}  # F
LAST_LAYER: Final = 4  # residual layers of a ResNet
MAX_SIZE: Final = 65_536  # of N and F: far above any use, below what exhausts memory

LESION_NMS_IOU: Final = 0.5  # method.md, stage 1, test
LESION_MIN_SCORE: Final = 0.05
LESION_MAX: Final = 128

INTENDED_USE: Final = (
    "Research on chest-CT slices. This is not a medical device: it is neither validated nor "
    "approved for diagnosis, triage or any decision about a patient."
)


@dataclass(frozen=True)
class Arch:
    """All that fixes the shapes of a model's weights.

    `truncation` counts the residual layers dropped from the end of a lightweight backbone. The
    paper's classifiers have no mask head; one that kept it reports the areas of lesions too.
    `lesion_classes` leaves out the background (label 0). Without `image_classes` the model is a
    detector, which uses neither `ranked` (N, boxes that module S sees) nor `hidden` (F, its width).
    Raises ModelError for a combination that the method does not have.
    """

    backbone: str
    truncation: int
    lesion_classes: tuple[str, ...]
    mask_head: bool
    image_classes: tuple[str, ...] = ()
    ranked: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ModelError(f"backbone {self.backbone!r} is unknown; use one of {BACKBONES}")
        if self.truncation not in (0, 1, 2):
            raise ModelError(f"truncation {self.truncation!r} is not possible; use 0, 1 or 2")
        if self.truncation and self.backbone == "resnet50":
            raise ModelError("resnet50 keeps all its layers; use truncation 0 or another backbone")
        for what, names in (("lesion", self.lesion_classes), ("image", self.image_classes)):
            if len(set(names)) != len(names) or "" in names:
                raise ModelError(
                    f"{what} classes {names} repeat or are empty; give each class a name of its own"
                )
        if not all(NAME.fullmatch(name) for name in self.image_classes):
            raise ModelError(
                f"image classes {self.image_classes} cannot name columns; use a-z, 0-9 and _"
            )
        if not self.lesion_classes:
            raise ModelError("lesion_classes is empty; name at least one class")
        if len(self.image_classes) == 1:
            raise ModelError(
                "image_classes has one class; name two or more, or none for a detector"
            )
        smallest = 1 if self.image_classes else 0
        for what, size in (("ranked", self.ranked), ("hidden", self.hidden)):
            if not smallest <= size <= MAX_SIZE:
                raise ModelError(f"{what} {size} is not possible; use {smallest} to {MAX_SIZE}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual layers that feed the pyramid, by number from 1."""
        if self.backbone == "resnet50":
            return (1, 2, 3, 4)
        return (LAST_LAYER - self.truncation,)

    @property
    def strides_px(self) -> tuple[int, ...]:
        """Pixels of the input per cell of each pyramid level: 4 at layer 1, doubled by each."""
        return tuple(2 ** (layer + 1) for layer in self.layers)


def lesion_rule(*, nms_iou: float = LESION_NMS_IOU) -> dict[str, Any]:
    """Return the rule by which reported lesions are chosen.

    `nms_iou` is the NMS threshold of the RoI: of two overlapping lesions of one class, the one of
    lower score is dropped if their IoU is above it. The rest are the constants above.
    """
    return {
        "min_score": LESION_MIN_SCORE,
        "nms_iou": nms_iou,
        "max": LESION_MAX,
    }


@dataclass(frozen=True)
class Card:
    """What card.json holds, key for key."""

    name: str
    arch: Arch
    trained: bool  # False: at least one part has random weights, and the scores mean nothing
    kind: str = ""  # "detector" or "classifier"; follows from arch
    activation: str = "sigmoid"  # from logit to probability; sigmoid: trained with BCE per class
    input: Mapping[str, Any] = field(default_factory=InputContract().to_card)
    lesions: Mapping[str, Any] = field(default_factory=lesion_rule)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # source, sha256, epoch ...
    notes: tuple[str, ...] = ()
    intended_use: str = INTENDED_USE
    calibration: Mapping[str, Any] = field(default_factory=dict)  # see `calibrated`
    weights_sha256: str = ""  # both filled by `save`
    weights_bytes: int = 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        kind = "classifier" if self.arch.image_classes else "detector"
        if self.kind not in ("", kind):
            raise ModelError(
                f"kind {self.kind!r} contradicts the image classes of arch; make it {kind!r}"
            )
        object.__setattr__(self, "kind", kind)
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"activation {self.activation!r} is unknown; use one of {ACTIVATIONS}")
        InputContract.from_card(self.input)
        nms_iou = self.lesions.get("nms_iou")
        if dict(self.lesions) != lesion_rule(nms_iou=nms_iou):  # type: ignore[arg-type]
            raise ModelError(
                "the lesion rule is of another version; use the version of cctmn that wrote it"
            )
        if type(nms_iou) not in (int, float) or not 0 < nms_iou <= 1:  # type: ignore[operator]
            raise ModelError("lesions: nms_iou is not between 0 and 1; correct it")
        for key, kinds in CALIBRATION.items():
            if key in self.calibration and type(self.calibration[key]) not in kinds:
                raise ModelError(f"calibration: {key} is not a number; calibrate the model again")
        if not self.temperature > 0 or (self.top_m is not None and self.top_m < 1):
            raise ModelError(
                "calibration: temperature or top_m is 0 or less; calibrate the model again"
            )
        if not 0 <= self.calibration.get("patient_slope", 1) < math.inf:
            raise ModelError("calibration: patient_slope is below 0; calibrate the model again")

    @property
    def lesion_nms_iou(self) -> float:
        """The NMS threshold by which the reported lesions are chosen."""
        return float(self.lesions["nms_iou"])

    @property
    def temperature(self) -> float:
        """The logits are divided by it before the activation; 1 before a calibration."""
        return float(self.calibration.get("temperature", 1.0))

    @property
    def top_m(self) -> int | None:
        """Number of slices that decide about a patient; None before a calibration."""
        return self.calibration.get("top_m")

    @property
    def validation(self) -> dict[str, Any]:
        """The validation part of the training and its metrics at this epoch; {} if not recorded.

        `chosen_by` is the metric that chose the best epoch and `value` its value; `metrics` has all
        of them, and `slices` and `patients` is what they stand on.
        """
        part = dict(self.provenance.get("validation") or {})
        if "metrics" in self.provenance:  # of an earlier version
            part = {
                "chosen_by": "accuracy" if self.kind == "classifier" else "image_map",
                "metrics": self.provenance["metrics"],
                "slices": self.provenance.get("valid_slices"),
            }
        if "metrics" not in part:
            return {}
        return part | {"value": part["metrics"].get(part["chosen_by"])}

    @property
    def fitted_on(self) -> dict[str, Any]:
        """Records of the sets of the training, the validation and the calibration, where kept."""
        sets = dict(self.provenance.get("sets") or {})
        return sets | (
            {"calibration": self.calibration["set"]} if "set" in self.calibration else {}
        )

    @property
    def described(self) -> dict[str, Any]:
        """The part of the card for reports, without who trained the model on what."""
        return {
            "model_id": self.model_id,
            "name": self.name,
            "trained": self.trained,
            "activation": self.activation,
            "backbone": f"{self.arch.backbone}, truncation {self.arch.truncation}",
            "ranked": self.arch.ranked,
            "hidden": self.arch.hidden,
            "mask_head": self.arch.mask_head,
            "image_classes": list(self.arch.image_classes),
            "lesion_classes": list(self.arch.lesion_classes),
            "lesions": dict(self.lesions),
            "training_slices": self.provenance.get("slices"),
            "training": _training(self.provenance),
            "validation": {k: v for k, v in self.validation.items() if k != "metrics"},
            "calibration": {k: v for k, v in self.calibration.items() if k != "set"},
            "fitted_on": self.fitted_on,
            "notes": list(self.notes),
            "intended_use": self.intended_use,
        }

    @property
    def model_id(self) -> str:
        """First 12 hex digits of the weights' sha256, as in the predictions table."""
        return self.weights_sha256[:12]


def _training(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model was trained, and the model that it started from, without files or notes.

    An imported checkpoint says hardly anything of this.
    """
    entries = {key: provenance[key] for key in TRAINING if key in provenance}
    if isinstance(settings := entries.get("settings"), Mapping):
        entries["settings"] = {k: v for k, v in settings.items() if k != "note"}
    part = entries.pop("validation", None)
    if isinstance(part, Mapping) and "slices" in part:
        entries["valid_slices"] = part["slices"]
    before = provenance.get("started_from")
    if isinstance(before, Mapping) and (earlier := _training(before)):
        entries["started_from"] = earlier
    return entries


def parse_card(card_bytes: bytes, *, where: str) -> Card:
    """Parse card.json; `where` names the place in messages. Raises ModelError."""
    try:
        raw = json.loads(card_bytes)
    except ValueError:
        raise ModelError(f"{CARD} is not JSON; copy the model again", where) from None
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise ModelError(
            f"{CARD} has format {version!r}, this version reads {FORMAT}; update cctmn", where
        )
    try:
        raw = _checked(raw, Card)
        raw["arch"] = Arch(**_checked(raw["arch"], Arch))
        return Card(**raw)
    except ModelError as error:
        raise ModelError(f"{CARD}: {error.text}", where) from None


def read_card(folder: Path | str) -> Card:
    """Return the card of a model folder, given by path or URI.

    Raises ModelError if the card is missing or of an unknown form, or if `folder` is a checkpoint.
    """
    if str(folder).endswith(CHECKPOINTS):
        raise ModelError(
            "a checkpoint, not a model folder; import it: cctmn models import CHECKPOINT -o DIR",
            folder,
        )
    return parse_card(_read(folder, CARD), where=str(folder))


def read_weights(folder: Path | str, *, card: Card) -> bytes:
    """Read the folder's weights. Raises ModelError if the card is of other weights."""
    weights = _read(folder, WEIGHTS)
    if len(weights) != card.weights_bytes:
        problem = f"has {len(weights)} bytes, the card says {card.weights_bytes}"
    elif hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        problem = "does not match the sha256 of the card"
    else:
        return weights
    raise ModelError(f"{WEIGHTS} {problem}; copy the model again", folder)


def parameter_counts(weights: bytes) -> dict[str, int]:
    """Count the parameters in a safetensors file: all, those of module S, and of batch norm.

    The running statistics of batch norm are buffers, which no optimiser changes, and do not count.
    Raises ModelError if the file is damaged.
    """
    size = int.from_bytes(weights[:8], "little")
    try:
        tensors = json.loads(weights[8 : 8 + size])
    except ValueError:
        raise ModelError(f"{WEIGHTS} is damaged; copy the model again") from None
    counts = {
        name: math.prod(tensor["shape"])
        for name, tensor in tensors.items()
        if name != "__metadata__"
        and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    norms = [n.removesuffix("running_mean") for n in tensors if n.endswith(".running_mean")]
    of_norms = [f"{norm}{part}" for norm in norms for part in ("weight", "bias")]
    return {
        "parameters": sum(counts.values()),
        "module_s": sum(n for name, n in counts.items() if name.startswith("module_s.")),
        "batch_norm": sum(counts.get(name, 0) for name in of_norms),
    }


def calibrated(folder: Path | str, *, calibration: Mapping[str, Any]) -> Card:
    """Write the temperature, the patient rule and their fit into the card of a model folder."""
    card = replace(read_card(folder), calibration=dict(calibration))
    write_card(folder, card=card)
    return card


def write_card(folder: Path | str, *, card: Card) -> None:
    """Put card.json into a model folder, a path or URI; a model that ships is not changed."""
    if str(folder).startswith(SHIPPED):
        raise ModelError("ships with cctmn and is not changed; copy it to a folder", folder)
    store.put(store.join(store.to_uri(str(folder)), CARD), card_bytes(card))


def card_bytes(card: Card) -> bytes:
    """Return the content of card.json."""
    text = json.dumps(asdict(card), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def portable(folder: str) -> str:
    """Return the model's name for other machines: a URI, or the name of a shipped model."""
    return folder if folder.startswith(SHIPPED) else store.to_uri(folder)


def _read(folder: Path | str, name: str) -> bytes:
    uri = portable(str(folder))
    if uri.startswith(SHIPPED):
        uri = (ASSETS / uri.removeprefix(SHIPPED)).as_uri()
    try:
        return store.read_all(store.join(uri, name))
    except ObjectError as error:
        raise ModelError(f"{name} {error.reason}; give a folder with {CARD}", folder) from None


def _checked(raw: Any, cls: type[Card] | type[Arch]) -> dict[str, Any]:
    """Return `raw` with lists as tuples. Raises ModelError unless keys and types fit `cls`."""
    if not isinstance(raw, dict):
        raise ModelError(f"{cls.__name__.lower()} is not a table; copy the model again")
    names = {f.name: str(f.type) for f in fields(cls)}
    raw = {**{key: {} for key in ADDED & names.keys()}, **raw}
    if wrong := sorted(names.keys() ^ raw.keys()):
        raise ModelError(f"keys missing or unknown: {wrong[:5]}; written by another version?")
    checked = {}
    for name, kind in names.items():
        value = raw[name]
        if kind.startswith("tuple") and isinstance(value, list):
            value = tuple(value)
            fits = all(isinstance(item, str) for item in value)
        else:
            python = {"str": str, "int": int, "bool": bool}.get(kind, dict)
            fits = type(value) is python
        if not fits:
            raise ModelError(f"{name} is not of type {kind}; correct it, or copy the model again")
        checked[name] = value
    return checked
