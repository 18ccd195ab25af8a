"""Published sets of slices that a report must recognise, by a hash of the slices' identities.

The author's 58,782 test slices are what remains of COVIDx-CT's training split without the 3,000
slices that the model was trained on. Most of their patients are in the training set too, and a
reader must be told so whatever the labels file is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cctmn.metrics.document import PAPER_REMAINING, PAPER_TEST


@dataclass(frozen=True)
class KnownSet:
    """The name of the set in metrics.json, and the warning for its readers, if one is due."""

    name: str
    warning: str = ""


KNOWN_SETS: Final = {
    "a058cfd0b3277decf4f7c5d5ada20e7aabf7a4eabf902ba598caf6713900debb": KnownSet(PAPER_TEST),
    "1f329238d9c93f837be76a4c03a9b3bf7f48ddc3a402af4b6e7d72f00b59418f": KnownSet(
        PAPER_REMAINING,
        "These are the 58,782 slices that the paper's author left in COVIDx-CT's training split: "
        "606 of the 608 patients of the author's 3,000 training slices have slices here too, so "
        "this is not an independent test.",
    ),
}


def identity_hash(identities: Sequence[str]) -> str:
    """Return the sha256 of a set of slices, independent of their order."""
    return hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()


def known_set(identities: Sequence[str]) -> KnownSet | None:
    """Return the published set with exactly these slices, if there is one."""
    return KNOWN_SETS.get(identity_hash(identities))
