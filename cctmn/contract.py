"""The input contract: the preparation that a model expects of every slice.

A model's card holds the contract, the reader carries it out and the networks rely on it. The type
stands here, below all three, so that there is only one. It needs neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from cctmn.errors import ModelError

# ImageNet's statistics, because the backbone is trained from ImageNet (method.md, stage 1).
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)

# The steps that every model of this version shares. A card states them for its reader; one that
# states anything else is refused, because the reader and the networks would not follow it.
FIXED: Final[Mapping[str, Any]] = {
    "quantise": "truncate to uint8",
    "resize": "pillow bilinear, antialiased when shrinking, short side",
    "mean": list(MEAN),
    "std": list(STD),
}


@dataclass(frozen=True)
class InputContract:
    """The size and the window of the picture that a model sees.

    The defaults are those of the method (method.md, stage 1); the window is that of the pictures in
    COVIDx-CT. Numbers keep their type, so that a card is written as it was read.
    """

    # length of the short side
    size_px: int = 512
    # the long side is at most this
    max_size_px: int = 1024
    window_center_hu: float = -600
    window_width_hu: float = 1500

    @classmethod
    def from_card(cls, table: Mapping[str, Any]) -> InputContract:
        """Return the contract in the `input` table of a card.

        Raises ModelError for a missing or unknown key, which might change the picture, for another
        value of a fixed step, and for a size or window that cannot be used.
        """
        names = [field.name for field in fields(cls)]
        if odd := sorted(table.keys() ^ {*names, *FIXED}):
            raise ModelError(
                f"the input contract has a missing or unknown key {odd[0]!r}; "
                "the model needs another version of cctmn"
            )
        if different := [key for key in FIXED if table[key] != FIXED[key]]:
            raise ModelError(
                f"the input contract asks for another {different[0]!r}; "
                "the model needs another version of cctmn"
            )
        numbers = [table[name] for name in names]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ModelError("the input contract: a size or window is not a number; correct it")
        contract = cls(**dict(zip(names, numbers, strict=True)))
        if contract.window_width_hu <= 0:
            raise ModelError("the input contract: window_width_hu is 0 or less; give a width in HU")
        if not 0 < contract.size_px <= contract.max_size_px:
            raise ModelError(
                "the input contract: sizes in the wrong order; give 0 < size_px <= max_size_px"
            )
        return contract

    def to_card(self) -> dict[str, Any]:
        """Return the `input` table of a card, the fixed steps included."""
        return asdict(self) | dict(FIXED)
