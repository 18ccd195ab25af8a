"""A model on disk: a folder with `weights.safetensors` and `card.json`.

In: a net and its `Card`, or a folder, or the bytes of both files from anywhere. Out: the same
bytes for the same model (no clock in them), or a net that answers bit for bit as the saved one.
The card says what the weights are, what input they expect and where they come from; a card with
an unknown key is refused, for a newer key may change the meaning of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cctmn.errors import ModelError
from cctmn.model import ranking
from cctmn.model.backbone import HIDDEN, RANKED, Arch
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.model.predict import MEAN, STD

FORMAT: Final = 1
WEIGHTS: Final = "weights.safetensors"
CARD: Final = "card.json"
ACTIVATIONS: Final = ("sigmoid", "softmax")
COVIDX_CLASSES: Final = ("control", "pneumonia", "covid")  # in the order of the logits
INTENDED_USE: Final = (
    "Research on chest-CT slices. This is no medical device: it is neither validated nor approved "
    "for diagnosis, triage or any decision about a patient."
)

Net = Detector | Classifier


def input_contract() -> dict[str, Any]:
    """What a slice must go through before `predict` (method.md, stage 1; window of CNCB's PNGs)."""
    return {
        "size_px": 512,  # short side
        "max_size_px": 1024,  # long side
        "window_center_hu": -600,
        "window_width_hu": 1500,
        "quantise": "truncate to uint8",
        "resize": "pillow bilinear, antialiased when shrinking, short side",
        "mean": list(MEAN),
        "std": list(STD),
    }


def lesion_rule() -> dict[str, Any]:
    """How the reported lesions are chosen; fixed in `ranking`, written down for the reader."""
    return {
        "min_score": ranking.LESION_MIN_SCORE,
        "nms_iou": ranking.LESION_NMS_IOU,
        "max": ranking.LESION_MAX,
    }


@dataclass(frozen=True)
class Card:
    """What card.json holds, key for key."""

    name: str
    arch: Arch
    trained: bool  # False: at least one part has random weights, and the scores mean nothing
    kind: str = ""  # "detector" or "classifier"; follows from arch
    activation: str = "sigmoid"  # from logit to probability; sigmoid: trained with BCE per class
    input: Mapping[str, Any] = field(default_factory=input_contract)
    lesions: Mapping[str, Any] = field(default_factory=lesion_rule)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # source, sha256, epoch ...
    notes: tuple[str, ...] = ()
    intended_use: str = INTENDED_USE
    weights_sha256: str = ""  # both filled by `save`
    weights_bytes: int = 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        kind = "classifier" if self.arch.image_classes else "detector"
        if self.kind not in ("", kind):
            raise ModelError(f"kind {self.kind!r} contradicts the image classes of arch")
        object.__setattr__(self, "kind", kind)
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"activation {self.activation!r} is unknown; use one of {ACTIVATIONS}")
        # The nets normalise and choose lesions with constants; a card cannot ask for others.
        ours = input_contract()
        fixed = {key: ours[key] for key in ("mean", "std", "quantise", "resize")}
        if self.input.keys() != ours.keys() or {k: self.input[k] for k in fixed} != fixed:
            raise ModelError("the input contract is not one that this version can keep")
        numbers = [value for key, value in self.input.items() if key not in fixed]
        if not all(_is_number(n) for n in numbers) or self.input["window_width_hu"] <= 0:
            raise ModelError("the input contract holds a size or window that is no number")
        if not 0 < self.input["size_px"] <= self.input["max_size_px"]:
            raise ModelError("the input contract needs 0 < size_px <= max_size_px")
        if dict(self.lesions) != lesion_rule():
            raise ModelError("the lesion rule is not the one of this version")

    @property
    def model_id(self) -> str:
        """First 12 hex digits of the weights' sha256, as in the predictions table."""
        return self.weights_sha256[:12]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A net in eval mode and its card."""

    net: Net
    card: Card


def fresh(arch: Arch, *, seed: int) -> Net:
    """An untrained net in eval mode, the same for the same seed; the global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(arch) if arch.image_classes else Detector(arch)
    return net.eval()


def classifier_from_detector(
    model: LoadedModel,
    *,
    seed: int,
    image_classes: tuple[str, ...] = COVIDX_CLASSES,
    ranked: int | None = None,
    hidden: int | None = None,
) -> LoadedModel:
    """Stage 2 before training: the detector's weights without masks, module S random from `seed`.

    `ranked` (N) and `hidden` (F) default to the author's for the backbone.
    """
    if not isinstance(model.net, Detector):
        raise ModelError(f"model {model.card.name!r} is a classifier already; give a detector")
    old = model.net.arch
    arch = replace(
        old,
        mask_head=False,
        image_classes=image_classes,
        ranked=RANKED[old.backbone] if ranked is None else ranked,
        hidden=HIDDEN[old.backbone] if hidden is None else hidden,
    )
    net = fresh(arch, seed=seed)
    assert isinstance(net, Classifier)
    weights = model.net.state_dict()
    net.detector.load_state_dict({name: weights[name] for name in net.detector.state_dict()})
    card = replace(
        model.card,
        arch=arch,
        kind="",
        trained=False,
        weights_sha256="",
        weights_bytes=0,
        notes=(
            *model.card.notes,
            f"module S is untrained (seed {seed}): the class scores mean nothing",
        ),
    )
    return LoadedModel(net, card)


def to_bytes(net: Net, *, card: Card) -> tuple[bytes, bytes, Card]:
    """card.json, weights.safetensors, and the card with the weights' hash and size filled in."""
    if net.arch != card.arch:
        raise ModelError(f"card {card.name!r} describes another architecture than the net has")
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    # One metadata key at most: safetensors keeps them in no fixed order.
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    sha256 = hashlib.sha256(weights).hexdigest()
    card = replace(card, weights_sha256=sha256, weights_bytes=len(weights))
    text = json.dumps(asdict(card), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n", weights, card


def save(net: Net, folder: Path, *, card: Card) -> Card:
    """Write the model folder, the card last so that a half-written one is never read."""
    card_bytes, weights_bytes, card = to_bytes(net, card=card)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    (folder / WEIGHTS).write_bytes(weights_bytes)
    partial = folder / (CARD + ".partial")
    partial.write_bytes(card_bytes)
    partial.replace(folder / CARD)
    return card


def load(folder: Path, *, device: str = "cpu", check: bool = True) -> LoadedModel:
    """Read a model folder; `check` compares the weights with the card's hash.

    Raises ModelError if a file is missing, damaged, altered or of an unknown form.
    """
    return load_bytes(
        _read(folder / CARD),
        _read(folder / WEIGHTS),
        where=str(folder),
        device=device,
        check=check,
    )


def load_bytes(
    card_bytes: bytes, weights_bytes: bytes, *, where: str, device: str = "cpu", check: bool = True
) -> LoadedModel:
    """As `load`, for files fetched from elsewhere; `where` names the place in messages."""
    card = parse_card(card_bytes, where=where)
    if check and (problem := _altered(card, weights_bytes)):
        raise ModelError(f"{where}: {problem}; copy the model again")
    try:
        tensors = safetensors.torch.load(weights_bytes)
    except SafetensorError:
        raise ModelError(f"{where}: {WEIGHTS} is damaged; copy the model again") from None
    net = filled(card.arch, tensors, where=where)
    return LoadedModel(net.to(device), card)


def verify(folder: Path) -> list[str]:
    """All that is wrong with a model folder, one line each; empty if it can be used."""
    try:
        load(folder)
    except ModelError as error:
        return [str(error)]
    return []


def read_card(folder: Path) -> Card:
    """The card of a model folder. Raises ModelError if it is missing or of an unknown form."""
    return parse_card(_read(folder / CARD), where=str(folder))


def parse_card(card_bytes: bytes, *, where: str) -> Card:
    """A Card from the bytes of card.json; `where` names the place in messages."""
    try:
        raw = json.loads(card_bytes)
    except ValueError:
        raise ModelError(f"{where}: {CARD} is not JSON; copy the model again") from None
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise ModelError(f"{where}: {CARD} has format {version!r}, this version reads {FORMAT}")
    try:
        raw = _checked(raw, Card)
        raw["arch"] = Arch(**_checked(raw["arch"], Arch))
        return Card(**raw)
    except ModelError as error:
        raise ModelError(f"{where}: {CARD}: {error}") from None


def filled(arch: Arch, tensors: Mapping[str, Tensor], *, where: str) -> Net:
    """A net in eval mode with these weights; names and shapes must fit, and all values be finite.

    It is built without memory first: initialising weights takes longer than reading them.
    """
    with torch.device("meta"):
        net = Classifier(arch) if arch.image_classes else Detector(arch)
    own = net.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        raise ModelError(
            f"{where}: {len(wrong)} weights are missing, unknown or of another shape: {wrong[:3]}"
        )
    if broken := [name for name in own if not tensors[name].isfinite().all()]:
        raise ModelError(f"{where}: {len(broken)} weights are not finite: {broken[:3]}")
    # Copies, for the bytes read may be aligned otherwise than torch aligns its own.
    copies = {name: t.to(own[name].dtype, copy=True) for name, t in tensors.items()}
    net.load_state_dict(copies, assign=True)
    return net.eval()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); give a model folder"
        ) from None


def _altered(card: Card, weights_bytes: bytes) -> str:
    if len(weights_bytes) != card.weights_bytes:
        return f"{WEIGHTS} has {len(weights_bytes)} bytes, the card says {card.weights_bytes}"
    if hashlib.sha256(weights_bytes).hexdigest() != card.weights_sha256:
        return f"{WEIGHTS} does not match the sha256 of the card"
    return ""


def _checked(raw: Any, cls: type[Card] | type[Arch]) -> dict[str, Any]:
    """`raw` with lists of names as tuples, if it has exactly the fields of `cls`, rightly typed."""
    if not isinstance(raw, dict):
        raise ModelError(f"{cls.__name__.lower()} is no table")
    names = {f.name: str(f.type) for f in fields(cls)}
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
            raise ModelError(f"{name} is not of type {kind}")
        checked[name] = value
    return checked


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
