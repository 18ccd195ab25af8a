"""The ranked boxes of every slice, computed once, for the variant that trains module S alone.

They are stored in parts below OUT/features, so that a run that was killed computes the missing
parts only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from cctmn import store
from cctmn.contract import InputContract
from cctmn.data.slices import SliceSample, read_slice
from cctmn.model.classifier import Classifier
from cctmn.model.inference import Predictor
from cctmn.train.loop import World

# Slices per file: about 15 s of work on a CPU core.
PART: Final = 32


def ranked_features(
    net: Classifier,
    slices: Sequence[SliceSample],
    *,
    contract: InputContract,
    folder: str,
    world: World,
    report_done: Callable[[int], None],
) -> Tensor:
    """Return the features of all slices (slices x 5 N), each computed by one worker.

    `report_done` gets the number of slices that are done.
    """
    predictor = Predictor(net.eval(), device=world.device)
    starts = range(0, len(slices), PART)
    for number, start in enumerate(starts):
        uri = store.join(folder, f"{number:06d}.npy")
        if number % world.size == world.rank and store.read_optional(uri) is None:
            part = slices[start : start + PART]
            pictures = [read_slice(one.image, contract=contract) for one in part]
            predictions = [predictor.predict([one], areas=False)[0] for one in pictures]
            features = [one.ranked_features_N5 for one in predictions]
            buffer = io.BytesIO()
            np.save(buffer, np.stack([one.reshape(-1) for one in features if one is not None]))
            store.put(uri, buffer.getvalue())
        report_done(min(start + PART, len(slices)))
    if world.size > 1:
        dist.barrier()
    parts = [store.read_all(store.join(folder, f"{n:06d}.npy")) for n in range(len(starts))]
    return torch.from_numpy(np.concatenate([np.load(io.BytesIO(part)) for part in parts]))
