"""A model on disk: a folder with `weights.safetensors` and `card.json`.

The same model always gives the same bytes, because nothing in them depends on the time. A loaded
network gives bit for bit the predictions of the saved one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cctmn import store
from cctmn.classes import COVIDX_CLASSES
from cctmn.errors import ModelError
from cctmn.model.card import (
    CARD,
    HIDDEN,
    RANKED,
    WEIGHTS,
    Arch,
    Card,
    card_bytes,
    read_card,
    read_weights,
    write_card,
)
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.model.shapes import shapes_alone

Net = Detector | Classifier


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A net in eval mode and its card."""

    net: Net
    card: Card


def fresh(arch: Arch, *, seed: int) -> Net:
    """Return an untrained net in eval mode, the same for a seed; the global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(arch) if arch.image_classes else Detector(arch)
    return net.eval()


def classifier_from_detector(
    model: LoadedModel,
    *,
    seed: int,
    image_classes: tuple[str, ...] = COVIDX_CLASSES,
    ranked: int = 0,
    hidden: int = 0,
    masks: bool = False,
) -> LoadedModel:
    """Return a classifier with the detector's weights, and module S random from `seed`.

    `ranked` (N) and `hidden` (F) default to the author's for the backbone; `masks` keeps the
    detector's mask head, if it has one.
    """
    if not isinstance(model.net, Detector):
        raise ModelError(f"model {model.card.name!r} is a classifier already; give a detector")
    old = model.net.arch
    arch = replace(
        old,
        mask_head=old.mask_head and masks,
        image_classes=image_classes,
        ranked=ranked or RANKED[old.backbone],
        hidden=hidden or HIDDEN[old.backbone],
    )
    net = fresh(arch, seed=seed)
    assert isinstance(net, Classifier)
    weights = model.net.state_dict()
    net.detector.load_state_dict({name: weights[name] for name in net.detector.state_dict()})
    return LoadedModel(net, _untrained(model.card, arch=arch, what="module S", seed=seed))


def with_image_classes(
    model: LoadedModel, *, image_classes: tuple[str, ...], seed: int
) -> LoadedModel:
    """A classifier for other classes: its last layer random from `seed`, all other weights kept."""
    if not isinstance(model.net, Classifier):
        raise ModelError(f"model {model.card.name!r} is a detector; it has no image classes")
    arch = replace(model.net.arch, image_classes=image_classes)
    net = fresh(arch, seed=seed)
    old, new = model.net.state_dict(), net.state_dict()
    last = f"module_s.{len(model.net.module_s) - 1}."
    net.load_state_dict({k: v if k.startswith(last) else old[k] for k, v in new.items()})
    return LoadedModel(net, _untrained(model.card, arch=arch, what="the last layer", seed=seed))


def _untrained(card: Card, *, arch: Arch, what: str, seed: int) -> Card:
    """Return the card of a net of which one part is random."""
    return replace(
        card,
        arch=arch,
        kind="",
        trained=False,
        weights_sha256="",
        weights_bytes=0,
        notes=(*card.notes, f"{what} is untrained (seed {seed}): the class scores mean nothing"),
    )


def to_bytes(net: Net, *, card: Card, half: bool = False) -> tuple[bytes, bytes, Card]:
    """Return card.json, weights.safetensors, and the card with the weights' hash and size.

    `half` rounds the weights to float16; they are float32 again when loaded.
    """
    if net.arch != card.arch:
        raise ModelError(
            "describes another architecture than the net has; make a new card",
            f"card {card.name!r}",
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    # One metadata key at most: safetensors keeps them in no fixed order.
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    sha256 = hashlib.sha256(weights).hexdigest()
    card = replace(card, weights_sha256=sha256, weights_bytes=len(weights))
    return card_bytes(card), weights, card


def save(net: Net, folder: Path | str, *, card: Card, half: bool = False) -> Card:
    """Write the model folder, a path or URI, the card last: a half-written one is never read."""
    card_text, weights_bytes, card = to_bytes(net, card=card, half=half)
    write(folder, card_text=card_text, weights=weights_bytes)
    return card


def check_free(folder: Path | str, *, net: Net, card: Card) -> None:
    """Raise ModelError if the folder holds another model than this one."""
    if store.read_optional(store.join(store.to_uri(str(folder)), CARD)) is None:
        return
    held = read_card(folder)
    if held.weights_sha256 != to_bytes(net, card=card)[2].weights_sha256:
        raise ModelError(
            f"holds another model, {held.name}; give another folder, or --overwrite", folder
        )


def write(folder: Path | str, *, card_text: bytes, weights: bytes) -> None:
    """Write what `to_bytes` made, the card last: a half-written folder is never read."""
    uri = store.to_uri(str(folder))
    store.delete(store.join(uri, CARD))
    store.put(store.join(uri, WEIGHTS), weights)
    store.put(store.join(uri, CARD), card_text)


def record(folder: Path | str, *, name: str, figures: Mapping[str, float | None]) -> None:
    """Write figures that somebody measured into the card of a model folder, under a name."""
    card = read_card(folder)
    measured = {**card.provenance.get("measured", {}), name: dict(figures)}
    card = replace(card, provenance={**card.provenance, "measured": measured})
    write_card(folder, card=card)


def load(folder: Path | str, *, device: str = "cpu") -> LoadedModel:
    """Read a model folder, a path or URI, and check its weights against its card.

    Raises ModelError if a file is missing, damaged, altered or of an unknown form.
    """
    card = read_card(folder)
    try:
        tensors = safetensors.torch.load(read_weights(folder, card=card))
    except SafetensorError:
        raise ModelError(f"{WEIGHTS} is damaged; copy the model again", folder) from None
    net = filled(card.arch, tensors, where=str(folder))
    detector = net.detector if isinstance(net, Classifier) else net
    detector.lesion_nms_iou = card.lesion_nms_iou
    return LoadedModel(net.to(device), card)


def filled(arch: Arch, tensors: Mapping[str, Tensor], *, where: str) -> Net:
    """Return a net in eval mode with these weights. Raises ModelError if they do not fit.

    It is built without memory first: initialising weights takes longer than reading them.
    """
    with shapes_alone():
        net = Classifier(arch) if arch.image_classes else Detector(arch)
    own = net.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        raise ModelError(
            f"{len(wrong)} weights are missing, unknown or of another shape: {wrong[:3]}; "
            "give the weights of this card",
            where,
        )
    if broken := [name for name in own if not tensors[name].isfinite().all()]:
        raise ModelError(
            f"{len(broken)} weights are not finite: {broken[:3]}; use a checkpoint from "
            "before its training diverged",
            where,
        )
    # Copies, for the bytes read may be aligned otherwise than torch aligns its own.
    copies = {name: t.to(own[name].dtype, copy=True) for name, t in tensors.items()}
    net.load_state_dict(copies, assign=True)
    return net.eval()
