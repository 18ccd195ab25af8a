"""The net that a training run starts from.

In: the stage's settings and perhaps a model to go on from. Out: a net with its card. ImageNet
weights of the trunk come by torchvision's download, or from a file where there is no internet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from cctmn.classes import LESION_MODES
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.errors import ConfigError, ModelError, PreflightError
from cctmn.model import checkpoint
from cctmn.model.card import Arch, Card
from cctmn.model.checkpoint import LoadedModel
from cctmn.model.detector import Detector


def detector(config: DetectorConfig, *, model: str | None) -> LoadedModel:
    """Stage 1: new with the trunk of `config.init`, or what the model folder holds."""
    if model is not None:
        loaded = checkpoint.load(model)
        if not isinstance(loaded.net, Detector) or not loaded.card.arch.mask_head:
            raise ModelError(f"{model}: is no detector with a mask head; stage 1 cannot go on")
        return loaded
    arch = Arch(
        backbone=config.backbone,
        truncation=config.truncation,
        lesion_classes=LESION_MODES[config.lesions],
        mask_head=True,
    )
    net = checkpoint.fresh(arch, seed=config.optim.seed)
    assert isinstance(net, Detector)
    if config.init != "none":
        weights = _imagenet(config.backbone) if config.init == "imagenet" else _file(config.init)
        _fill_trunk(net.backbone.body, weights=weights, config=config)
    name = f"{config.backbone}-t{config.truncation}-{config.lesions}"
    return LoadedModel(net, Card(name=name, arch=arch, trained=False))


def classifier(config: ClassifierConfig, *, model: str | None) -> LoadedModel:
    """Stage 2: on top of a detector, or a classifier that is tuned on, perhaps to other classes."""
    if model is None:
        raise ConfigError("no model: stage 2 starts from a detector; give -m MODEL")
    loaded = checkpoint.load(model)
    seed = config.optim.seed
    if isinstance(loaded.net, Detector):
        return checkpoint.classifier_from_detector(
            loaded,
            seed=seed,
            image_classes=config.classes,
            ranked=config.ranked,
            hidden=config.hidden,
            masks=config.masks,
        )
    arch = loaded.card.arch
    for name, asked, has in (
        ("ranked", config.ranked, arch.ranked),
        ("hidden", config.hidden, arch.hidden),
    ):
        if asked not in (0, has):
            raise ConfigError(f"{name}: {model} has {has} and cannot change; leave it out")
    if config.classes == arch.image_classes:
        return loaded
    return checkpoint.with_image_classes(loaded, image_classes=config.classes, seed=seed)


def trained_card(
    card: Card,
    *,
    name: str,
    config: DetectorConfig | ClassifierConfig,
    provenance: dict[str, Any],
) -> Card:
    """The card of what training makes of the initial net."""
    activation = card.activation
    if isinstance(config, ClassifierConfig):
        activation = {"bce": "sigmoid", "cross-entropy": "softmax"}[config.loss]
    notes = [note for note in card.notes if "untrained" not in note]
    if config.note and config.note not in notes:
        notes.append(config.note)
    before = {k: card.provenance[k] for k in ("source", "sha256") if k in card.provenance}
    if card.weights_sha256:
        before["weights_sha256"] = card.weights_sha256
    return replace(
        card,
        name=name,
        trained=True,
        activation=activation,
        notes=tuple(notes),
        provenance={**provenance, **({"started_from": before} if before else {})},
        weights_sha256="",
        weights_bytes=0,
    )


def _fill_trunk(trunk: nn.Module, *, weights: Mapping[str, Any], config: DetectorConfig) -> None:
    """Copy the trunk's weights; ModelError if they are of another backbone."""
    with torch.device("meta"):
        whole = get_model(config.backbone).state_dict()  # a truncated trunk has fewer layers
    own = trunk.state_dict()
    # torchvision's files of 2016 are older than these counters.
    missing = {name for name in own if not name.endswith("num_batches_tracked")} - weights.keys()
    if missing:
        raise ModelError(
            f"{config.init}: lacks weights of {config.backbone}: {sorted(missing)[:3]}"
        )
    # A ResNet-34's hold all those of a ResNet-18, and more.
    if more := weights.keys() - whole.keys():
        raise ModelError(
            f"{config.init}: not of a {config.backbone}: has {sorted(more)[:3]} as well"
        )
    try:
        trunk.load_state_dict({name: weights[name] for name in own if name in weights})
    except RuntimeError as error:
        shape = str(error).splitlines()[-1].strip()
        raise ModelError(f"{config.init}: not of a {config.backbone} ({shape})") from None


def _imagenet(backbone: str) -> dict[str, Any]:
    """The weights of 2016, which the paper had; torchvision's newer ones are other features."""
    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PreflightError(
            f"ImageNet weights of {backbone} cannot be downloaded ({reason}); fetch {weights.url} "
            "elsewhere and give init=FILE, or init=none to start from random weights"
        ) from None


def _file(path: str) -> dict[str, Any]:
    try:
        weights = torch.load(Path(path), map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give init=FILE") from None
    except Exception:  # noqa: BLE001 - what it raises on other files has no end
        raise ModelError(f"{path}: holds no plain weights; give a torchvision .pth") from None
    if not isinstance(weights, dict):
        raise ModelError(f"{path}: holds no plain weights; give a torchvision .pth")
    return weights
