"""Import of the author's checkpoints, of both stages and every backbone.

A .pth file of the author's code (or of a fork, DataParallel included) becomes a network and its
card, ready for `checkpoint.save`. The file does not name the backbone, truncation, classes, N and
F; they follow from the shapes. Every tensor must have its place and every weight must be filled,
because a network with one random layer left would still give scores.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

import cctmn
from cctmn.classes import COVIDX_CLASSES, LESION_MODES
from cctmn.errors import ModelError
from cctmn.model.card import LAST_LAYER, Arch, Card
from cctmn.model.checkpoint import Net, filled
from cctmn.model.constants import ANCHOR_SIZES_PX, ASPECT_RATIOS
from cctmn.model.unpickle import Record, TensorRef, read

IMAGE_CLASSES: Final = {3: COVIDX_CLASSES, 2: ("control", "covid")}  # 2: iCTCF
# Blocks of residual layers 1..4 by backbone.
BLOCKS: Final = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Names of torchvision 0.3 and of the author's modules -> ours, applied in this order.
RENAMED: Final = (
    (r"^module\.", ""),  # DataParallel
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    *(
        (rf"^roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"roi_heads.mask_head.{i}.0.")
        for i in range(4)
    ),
    (r"^s2new\.fc_scores\.", "module_s.0."),
    (r"^s2new\.fc_scores_2\.", "module_s.2."),
    (r"^s2new\.fc_scores_img\.", "module_s.4."),
)


def import_checkpoint(path: Path, *, lesions: str | None = None) -> tuple[Net, Card]:
    """Read an author's checkpoint without running anything of it.

    `lesions` ("both", "ggo" or "merge") is needed only for two-class files that know GGO alone;
    without it their class is "lesion". Raises ModelError if the file is damaged, something else,
    has other anchors, or a tensor too many or too few.
    """
    saved = read(path)
    where = str(path)
    content = saved.content
    if not isinstance(content, dict):
        raise ModelError("holds no dict of weights; give a checkpoint of the method", where)
    notes = []
    if "anchor_generator" in content:
        _check_anchors(content["anchor_generator"], where=where)
    else:
        notes.append("the source does not say its anchors; the author's were assumed")
    weights = content.get("model_weights", content)
    if not (isinstance(weights, dict) and weights):
        raise ModelError("model_weights is empty or no dict; it is not a checkpoint", where)
    refs = {_our_name(str(name)): ref for name, ref in weights.items()}
    odd = [name for name, ref in refs.items() if not isinstance(ref, TensorRef)]
    if odd or len(refs) != len(weights):
        raise ModelError(
            f"holds weights that are no tensors or occur twice: {odd[:3]}; give a "
            "checkpoint of the method",
            where,
        )
    try:
        arch = infer_arch({name: ref.shape for name, ref in refs.items()}, lesions=lesions)
        tensors = {}
        for name, ref in refs.items():
            inside = arch.image_classes and not name.startswith("module_s.")
            tensors["detector." + name if inside else name] = saved.tensor(ref)
    except ModelError as error:
        raise ModelError(error.text, where) from None
    # torch before 0.4 did not count batches, and nothing here reads the count.
    for name in [n for n in tensors if n.endswith(".running_mean")]:
        counter = name.replace("running_mean", "num_batches_tracked")
        tensors.setdefault(counter, torch.zeros((), dtype=torch.int64))
    net = filled(arch, tensors, where=where)
    provenance: dict[str, Any] = {
        "source": path.name,
        "source_sha256": _sha256(path),
        "importer": f"cctmn {cctmn.__version__}",
    }
    for key, kind in (("epoch", int), ("model_name", str)):
        if isinstance(content.get(key), kind):
            provenance[key] = content[key]
    card = Card(path.stem, arch, trained=True, provenance=provenance, notes=tuple(notes))
    return net, card


def infer_arch(shapes: Mapping[str, tuple[int, ...]], *, lesions: str | None) -> Arch:
    """Return the Arch of weights with these names and shapes.

    Raises ModelError if no model of the method has them, or `lesions` contradicts them.
    """
    blocks: dict[int, int] = {}  # by residual layer
    for name in shapes:
        if match := re.match(r"backbone\.body\.layer(\d+)\.(\d+)\.", name):
            layer, block = int(match[1]), int(match[2])
            blocks[layer] = max(blocks.get(layer, 0), block + 1)
    counts = tuple(blocks[layer] for layer in sorted(blocks))
    bottleneck = "backbone.body.layer1.0.conv3.weight" in shapes
    names = ("resnet50",) if bottleneck else ("resnet18", "resnet34")
    backbones = [name for name in names if counts and BLOCKS[name][: len(counts)] == counts]
    if not backbones:
        raise ModelError(
            f"no known backbone has residual blocks {counts}; give a checkpoint of the method"
        )
    lesion_count = _matrix(shapes, "roi_heads.box_predictor.cls_score.weight")[0] - 1
    if lesions is None:
        lesions = {2: "both", 1: "merge"}.get(lesion_count, "")
    if len(LESION_MODES.get(lesions, ())) != lesion_count:
        raise ModelError(
            f"{lesion_count} lesion classes do not fit lesions={lesions!r}; "
            "use both for 2, merge or ggo for 1"
        )
    image_classes: tuple[str, ...] = ()
    ranked = hidden = 0
    if any(name.startswith("module_s.") for name in shapes):
        hidden, inputs = _matrix(shapes, "module_s.0.weight")
        ranked = inputs // 5  # score and 4 deltas
        outputs = _matrix(shapes, "module_s.4.weight")[0]
        if outputs not in IMAGE_CLASSES:
            raise ModelError(f"{outputs} image classes are not known; give a checkpoint of 2 or 3")
        image_classes = IMAGE_CLASSES[outputs]
    return Arch(
        backbone=backbones[0],
        truncation=LAST_LAYER - len(counts),
        lesion_classes=LESION_MODES[lesions],
        mask_head=any(name.startswith("roi_heads.mask_head.") for name in shapes),
        image_classes=image_classes,
        ranked=ranked,
        hidden=hidden,
    )


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    match shapes.get(name):
        case (rows, columns):
            return rows, columns
    raise ModelError(f"{name} is missing or no matrix; give a checkpoint of the method")


def _our_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _check_anchors(generator: Any, *, where: str) -> None:
    """Refuse other anchors than ours: the RPN's weights would fit, and mean something else."""
    for field, ours in (("sizes", ANCHOR_SIZES_PX), ("aspect_ratios", ASPECT_RATIOS)):
        levels = generator.state.get(field) if isinstance(generator, Record) else None
        if not isinstance(levels, list | tuple) or not levels:
            raise ModelError(
                f"the anchor generator holds no {field}; give a checkpoint of the method", where
            )
        for level in levels:
            if not isinstance(level, list | tuple) or tuple(level) != ours:
                raise ModelError(
                    f"anchor {field} {level!s:.60} are not {ours}; give a checkpoint of the method",
                    where,
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
