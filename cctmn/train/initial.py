"""The net that a training run starts from, and the card of what training makes of it.

ImageNet weights of the backbone are downloaded by torchvision, or read from a file where there is
no internet.
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
from cctmn.model.card import TRAINING, Arch, Card
from cctmn.model.checkpoint import LoadedModel
from cctmn.model.detector import Detector


def detector(config: DetectorConfig, *, model: str | None) -> LoadedModel:
    """Return the net of stage 1: the one in the model folder, or a new one.

    A new one holds the backbone weights of a file, if `config.init` names one. ImageNet weights are
    left to `with_imagenet`, so that the data can be checked before anything is downloaded.
    Raises ModelError if the model or the file does not fit.
    """
    if model is not None:
        loaded = checkpoint.load(model)
        if not isinstance(loaded.net, Detector) or not loaded.card.arch.mask_head:
            raise ModelError(
                "is not a detector with a mask head; stage 1 needs one, or no -m", model
            )
        return loaded
    arch = Arch(
        backbone=config.backbone,
        truncation=config.truncation,
        lesion_classes=LESION_MODES[config.lesions],
        mask_head=True,
    )
    net = checkpoint.fresh(arch, seed=config.optim.seed)
    assert isinstance(net, Detector)
    if config.init not in ("none", "imagenet"):
        _fill_backbone(net.backbone.body, weights=_file(config.init), config=config)
    name = f"{config.backbone}-t{config.truncation}-{config.lesions}"
    return LoadedModel(net, Card(name=name, arch=arch, trained=False))


def with_imagenet(start: LoadedModel, *, config: DetectorConfig) -> LoadedModel:
    """Fill the backbone of a new detector with ImageNet weights, if `config.init` asks for them.

    Raises PreflightError if they cannot be downloaded.
    """
    if config.init == "imagenet":
        assert isinstance(start.net, Detector)
        weights = _imagenet(config.backbone)
        _fill_backbone(start.net.backbone.body, weights=weights, config=config)
    return start


def classifier(config: ClassifierConfig, *, model: str | None) -> LoadedModel:
    """Return the net of stage 2: a detector with a new module S, or a classifier to tune.

    Raises ModelError if the model cannot be loaded, ConfigError if settings contradict it.
    """
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
            raise ConfigError(
                f"{name}: the model has {has} and cannot change; leave it out", "", model
            )
    if config.classes == arch.image_classes:
        return loaded
    return checkpoint.with_image_classes(loaded, image_classes=config.classes, seed=seed)


def trained_card(
    card: Card,
    *,
    name: str,
    activation: str,
    note: str,
    provenance: dict[str, Any],
) -> Card:
    """Return the card of the trained model, given the card of the initial net.

    `note` is added to its notes, unless it is empty.
    """
    notes = [n for n in card.notes if "untrained" not in n]
    if note and note not in notes:
        notes.append(note)
    # The settings of stage 1 stay on the card of a classifier, and so does what came before them.
    kept = ("source", "sha256", *TRAINING, "started_from")
    before = {k: card.provenance[k] for k in kept if k in card.provenance}
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


def _fill_backbone(
    backbone: nn.Module, *, weights: Mapping[str, Any], config: DetectorConfig
) -> None:
    """Copy weights into the backbone. Raises ModelError if they belong to another backbone."""
    with torch.device("meta"):
        # All layers: a truncated backbone has fewer of them.
        whole = get_model(config.backbone).state_dict()
    own = backbone.state_dict()
    # torchvision's files of 2016 are older than the batch counters of batch norm.
    missing = {name for name in own if not name.endswith("num_batches_tracked")} - weights.keys()
    if missing:
        raise ModelError(
            f"lacks weights of {config.backbone}: {sorted(missing)[:3]}; give its weights "
            "as `init`",
            config.init,
        )
    # The weights of a ResNet-34 include every name of a ResNet-18, so extra names are checked too.
    if more := weights.keys() - whole.keys():
        raise ModelError(
            f"not the weights of a {config.backbone}: also has {sorted(more)[:3]}; set "
            "`backbone` to theirs",
            config.init,
        )
    try:
        backbone.load_state_dict({name: weights[name] for name in own if name in weights})
    except RuntimeError as error:
        shape = str(error).splitlines()[-1].strip()
        raise ModelError(
            f"not the weights of a {config.backbone} ({shape}); set `backbone` to theirs",
            config.init,
        ) from None


def _imagenet(backbone: str) -> dict[str, Any]:
    """Download torchvision's weights of 2016, which the paper used, not its newer ones."""
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
        raise ModelError(f"cannot be read ({error.strerror}); give init=FILE", path) from None
    except Exception:  # noqa: BLE001 - other files make it raise errors of many kinds
        raise ModelError("not a file of plain weights; give a torchvision .pth", path) from None
    if not isinstance(weights, dict):
        raise ModelError("not a file of plain weights; give a torchvision .pth", path)
    return weights
