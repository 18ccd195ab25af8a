"""The type of a decoded slice, which every image format gives and every later step takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cctmn.acquisition import Acquisition
from cctmn.read.geometry import Turn


@dataclass(frozen=True)
class Slice:
    """One decoded slice in the usual axial display: row 0 anterior, column 0 patient right.

    Sizes and spacings are those of the stored image, before the turn.
    """

    # H x W: float32 Hounsfield units, or uint8 for a picture
    pixels: npt.NDArray[Any]
    unit: Literal["hu", "grey8"]
    turn: Turn
    rows: int
    cols: int
    flags: frozenset[str]
    # What only a DICOM header holds; the row spacing is the distance between rows.
    spacing_row_mm: float | None = None
    spacing_col_mm: float | None = None
    slice_z_mm: float | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    patient_id: str | None = None
    acquisition: Acquisition = field(default_factory=Acquisition)

    @property
    def is_oriented(self) -> bool:
        """Whether left, right, front and back of the patient are known."""
        return self.unit == "hu" and (self.turn != Turn() or "orientation" not in self.flags)

    def __post_init__(self) -> None:
        assert self.pixels.dtype == (np.float32 if self.unit == "hu" else np.uint8)
