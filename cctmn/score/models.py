"""A model folder, local or on S3, as the job needs it.

In: the URI of a folder with card.json and weights.safetensors. Out: the checked Source for the
driver, and in each scorer process the loaded networks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from cctmn import store
from cctmn.errors import ModelError, SliceError
from cctmn.score.scorer import ImageArray, Source

if TYPE_CHECKING:
    from cctmn.model.checkpoint import Card, LoadedModel
    from cctmn.model.predict import Prediction


class NetScorer:
    """The networks of one model folder on this process's device."""

    def __init__(self, uri: str) -> None:
        import torch

        torch.set_num_threads(1)  # one scorer a core; two threads on one core only wait
        self._net = load(uri, device=device()).net

    def predict(self, images: Sequence[ImageArray]) -> list[Prediction]:
        """One prediction per image, in order."""
        return self._net.predict(images)


def open_source(text: str) -> Source:
    """The model at a path or S3 URI, loaded once to check it. Raises ModelError."""
    uri = store.to_uri(text)
    card = load(uri, device="cpu").card
    arch = card.arch
    return Source(
        model_id=card.model_id,
        image_classes=tuple(arch.image_classes),
        lesion_classes=tuple(arch.lesion_classes),
        activation=card.activation,
        input=dict(card.input),
        answers={
            "weights_sha256": card.weights_sha256,
            "arch": asdict(arch),
            "input": dict(card.input),
            "lesions": dict(card.lesions),
            "activation": card.activation,
        },
        load=functools.partial(NetScorer, uri),
    )


def load(uri: str, *, device: str) -> LoadedModel:
    """The verified model of a folder. Raises ModelError: missing, damaged, altered."""
    from cctmn.model import checkpoint

    return checkpoint.load_bytes(
        _read(uri, checkpoint.CARD), _read(uri, checkpoint.WEIGHTS), where=uri, device=device
    )


def read_card(uri: str) -> Card:
    """The card of a folder, without its weights. Raises ModelError."""
    from cctmn.model import checkpoint

    return checkpoint.parse_card(_read(uri, checkpoint.CARD), where=uri)


def _read(uri: str, name: str) -> bytes:
    try:
        return store.read_all(store.join(uri, name))
    except SliceError as error:
        code = error.code.replace("_", " ")
        raise ModelError(f"{store.join(uri, name)}: {code}; MODEL is a folder with it") from None


def device() -> str:
    """The device of a scorer process: its GPU if it was given one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
