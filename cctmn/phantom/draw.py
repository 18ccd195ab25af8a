"""Synthetic chest-CT slices with known lesions, so that every step can be tested without patients.

A phantom is an axial slice in HU with body, lungs, vessels, airways, heart, spine, ribs and noise.
COVID-19 shows as ground glass (hazy, peripheral, on both sides) and common pneumonia as
consolidation (dense, central or lobar, on one side). The networks can learn from these slices, but
they are not medically accurate. The same seed gives the same slices.

Takes: a random generator, a finding and a recipe. `layouts` writes the slices to files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw
from scipy import ndimage

from cctmn.classes import COVIDX_CLASSES
from cctmn.data.lesions import DROPPED_PX

SIZE_PX: Final = 512
CONTROL, PNEUMONIA, COVID = COVIDX_CLASSES
# Values of the label image, as in CNCB's masks
BACKGROUND, CLEAN_LUNG, GGO, CONSOLIDATION = 0, 1, 2, 3
# Hounsfield units of what is drawn
AIR, LUNG, FAT, MUSCLE, BLOOD, BONE, MARROW = -1000.0, -840.0, -95.0, 45.0, 40.0, 480.0, 180.0
LUNG_X, LUNG_RX, LUNG_RY = 0.195, 0.16, 0.225  # of an average lung, in parts of the field

Image = npt.NDArray[np.float32]
LabelImage = npt.NDArray[np.uint8]
Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """What patients and their lesions look like; lengths in parts of the field."""

    ggo_hu: Range = (-640.0, -500.0)
    ggo_radius: Range = (0.030, 0.060)
    ggo_count: tuple[int, int] = (5, 9)  # in the whole lungs; a slice shows about half of them
    ggo_depth: Range = (0.72, 0.95)  # from the lung's centre (0) to the pleura (1)
    consolidation_hu: Range = (-60.0, 40.0)
    consolidation_radius: Range = (0.055, 0.095)
    consolidation_depth: Range = (0.20, 0.60)
    raggedness: float = 0.30  # of a lesion's outline
    noise_hu: Range = (14.0, 24.0)
    vessels: int = 45  # a lung
    squareness: float = 2.0  # exponent of the body's outline; 2 is an ellipse


RECIPES: Final = {
    "standard": Recipe(),
    # Other patients on another scanner: what a network learns on one recipe must not depend on the
    # details of that recipe.
    "other": Recipe(
        ggo_hu=(-600.0, -450.0),
        ggo_radius=(0.035, 0.070),
        ggo_count=(4, 8),
        ggo_depth=(0.60, 0.95),
        consolidation_hu=(-120.0, 20.0),
        consolidation_radius=(0.050, 0.090),
        consolidation_depth=(0.10, 0.75),
        raggedness=0.40,
        noise_hu=(25.0, 40.0),
        vessels=70,
        squareness=2.6,
    ),
}


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid in a lung; lengths in parts of the field, heights in parts of the lungs'."""

    label: int
    hu: float
    side: int  # -1 the patient's right lung (left in the picture), +1 the left one
    angle: float  # around the lung's centre, 0 is lateral, pi / 2 posterior
    depth: float
    radius: float
    stretch: float  # of one axis against the other
    tilt: float
    height: float
    half_height: float


@dataclass(frozen=True)
class Patient:
    """The shapes of one made-up patient."""

    finding: str
    recipe: Recipe
    width: float
    height: float
    lung: float
    heart: float
    noise_hu: float
    lesions: tuple[Lesion, ...]

    @classmethod
    def drawn(
        cls,
        rng: np.random.Generator,
        *,
        finding: str = CONTROL,
        recipe: Recipe = RECIPES["standard"],
    ) -> Patient:
        """Draw a patient with this finding."""
        return cls(
            finding=finding,
            recipe=recipe,
            width=rng.uniform(0.40, 0.46),
            height=rng.uniform(0.29, 0.34),
            lung=rng.uniform(0.92, 1.08),
            heart=rng.uniform(0.85, 1.15),
            noise_hu=rng.uniform(*recipe.noise_hu),
            lesions=tuple(_lesions(rng, finding=finding, recipe=recipe)),
        )

    def confined(self, extent: float, *, rng: np.random.Generator) -> Patient:
        """Return the patient with all lesions within this fraction of the lungs' height.

        The top and the base of the lungs stay clean, by as much as a tenth of the height each.
        """
        if not self.lesions:
            return self
        top = min(lesion.height - lesion.half_height for lesion in self.lesions)
        base = max(lesion.height + lesion.half_height for lesion in self.lesions)
        centre = rng.uniform(0.1 + extent / 2, 0.9 - extent / 2)
        scale = extent / (base - top)
        lesions = (
            replace(
                lesion,
                height=centre + (lesion.height - (top + base) / 2) * scale,
                half_height=lesion.half_height * scale,
            )
            for lesion in self.lesions
        )
        return replace(self, lesions=tuple(lesions))

    def visible_height(self, rng: np.random.Generator) -> float:
        """A height at which a slice shows a lesion, any height for a control."""
        if not self.lesions:
            return float(rng.uniform(0.15, 0.85))
        lesion = self.lesions[rng.integers(len(self.lesions))]
        return float(np.clip(lesion.height + rng.uniform(-0.4, 0.4) * lesion.half_height, 0.1, 0.9))


@dataclass(frozen=True, eq=False)
class PhantomSlice:
    """One slice and its truth."""

    hu: Image  # SIZE_PX x SIZE_PX, whole numbers
    labels: LabelImage  # BACKGROUND, CLEAN_LUNG, GGO, CONSOLIDATION

    @property
    def finding(self) -> str:
        """The class of the slice: that of its largest lesion, control if none is visible."""
        ggo, dense = (int(np.count_nonzero(self.labels == v)) for v in (GGO, CONSOLIDATION))
        if max(ggo, dense) <= DROPPED_PX:
            return CONTROL
        return COVID if ggo >= dense else PNEUMONIA


def _lesions(rng: np.random.Generator, *, finding: str, recipe: Recipe) -> list[Lesion]:
    if finding == COVID:
        count = int(rng.integers(*recipe.ggo_count, endpoint=True))
        # Both sides in turn, so that no patient has one side only.
        return [
            Lesion(
                label=GGO,
                hu=rng.uniform(*recipe.ggo_hu),
                side=(-1, 1)[i % 2],
                angle=rng.uniform(-0.45 * np.pi, 0.75 * np.pi),
                depth=rng.uniform(*recipe.ggo_depth),
                radius=rng.uniform(*recipe.ggo_radius),
                stretch=rng.uniform(0.7, 1.5),
                tilt=rng.uniform(0, np.pi),
                height=rng.uniform(0.2, 0.8),
                half_height=rng.uniform(0.25, 0.45),
            )
            for i in range(count)
        ]
    if finding == PNEUMONIA:
        side = (-1, 1)[rng.integers(2)]
        return [
            Lesion(
                label=CONSOLIDATION,
                hu=rng.uniform(*recipe.consolidation_hu),
                side=side,
                angle=rng.uniform(0, 2 * np.pi),
                depth=rng.uniform(*recipe.consolidation_depth),
                radius=rng.uniform(*recipe.consolidation_radius),
                stretch=rng.uniform(0.75, 1.35),
                tilt=rng.uniform(0, np.pi),
                height=height,
                half_height=rng.uniform(0.22, 0.35),
            )
            for height in (rng.uniform(0.2, 0.45), rng.uniform(0.6, 0.8))[: rng.integers(1, 3)]
        ]
    return []


class _Canvas:
    """A slice that is being drawn; a shape changes only its bounding box."""

    def __init__(self, patient: Patient, *, height: float, rng: np.random.Generator) -> None:
        self.patient, self.height, self.rng = patient, height, rng
        self.hu: Image = np.full((SIZE_PX, SIZE_PX), AIR, np.float32)
        self.labels: LabelImage = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        self.axis = ((np.arange(SIZE_PX) + 0.5) / SIZE_PX - 0.5).astype(np.float32)
        self.ragged = _cloud(rng, 22)  # of outlines
        grown = patient.lung * (0.55 + 0.45 * np.sin(np.pi * (0.15 + 0.7 * height)))
        self.rx, self.ry = LUNG_RX * grown, LUNG_RY * grown

    def window(
        self, cx: float, cy: float, reach_x: float, reach_y: float
    ) -> tuple[tuple[slice, slice], Image, Image]:
        """Return the part around a point, and x and y of its px relative to the point."""

        def span(centre: float, reach: float) -> slice:
            first, last = ((centre + sign * reach + 0.5) * SIZE_PX for sign in (-1, 1))
            return slice(max(0, int(first)), max(0, min(SIZE_PX, int(last) + 1)))

        rows, cols = span(cy, reach_y), span(cx, reach_x)
        return (rows, cols), self.axis[None, cols] - cx, self.axis[rows, None] - cy

    def fill(self, hu: float, *where: float, power: float = 2.0) -> None:
        """Draw an ellipse (cx, cy, rx, ry), squarer with a higher power."""
        cx, cy, rx, ry = where
        box, x, y = self.window(cx, cy, rx, ry)
        self.hu[box][np.abs(x / rx) ** power + np.abs(y / ry) ** power < 1] = hu

    def draw_wall(self) -> None:
        """Fat, muscle and ribs."""
        wide, deep, power = self.patient.width, self.patient.height, self.patient.recipe.squareness
        self.fill(FAT, 0, 0, wide, deep, power=power)
        self.fill(MUSCLE, 0, 0, wide - 0.03, deep - 0.03, power=power)
        for side in (-1, 1):
            for angle in np.linspace(-0.35, 0.4, 5) * np.pi + 0.1 * self.height:
                cx, cy = (wide - 0.05) * np.cos(angle), (deep - 0.045) * np.sin(angle)
                self.fill(BONE, side * cx, cy, 0.011, 0.022)

    def draw_lungs(self) -> None:
        """Both lungs beside the heart."""
        for side in (-1, 1):
            box, x, y = self.window(side * LUNG_X, 0.0, 1.2 * self.rx, 1.2 * self.ry)
            inside = (x / self.rx) ** 2 + (y / self.ry) ** 2 < 1 + 0.06 * self.ragged[box]
            self.labels[box][inside] = CLEAN_LUNG
        heart = self.patient.heart * (0.4 + 0.6 * self.height)
        cx, cy, rx, ry = 0.035, -0.06, 0.115 * heart, 0.10 * heart
        box, x, y = self.window(cx, cy, rx, ry)
        self.labels[box][(x / rx) ** 2 + (y / ry) ** 2 < 1] = BACKGROUND
        lung = self.labels == CLEAN_LUNG
        self.hu[lung] = LUNG + 25 * _cloud(self.rng, 90)[lung]
        self.fill(BLOOD, cx, cy, rx, ry)

    def draw_lesion(self, lesion: Lesion) -> None:
        """A lesion's cut at this height, inside the lungs."""
        off = (self.height - lesion.height) / lesion.half_height
        if abs(off) >= 1:
            return
        radius = lesion.radius * float(np.sqrt(1 - off**2))
        cx = lesion.side * (LUNG_X + lesion.depth * self.rx * np.cos(lesion.angle))
        cy = lesion.depth * self.ry * np.sin(lesion.angle)
        box, x, y = self.window(cx, cy, 2 * radius, 2 * radius)
        cos, sin = np.cos(lesion.tilt), np.sin(lesion.tilt)
        along, across = (x * cos + y * sin) * lesion.stretch, (y * cos - x * sin) / lesion.stretch
        distance = np.sqrt(along**2 + across**2) / radius
        within = 1 - distance + 0.5 * self.patient.recipe.raggedness * self.ragged[box]
        in_lung = self.labels[box] != BACKGROUND
        self.labels[box][(within > 0) & in_lung] = lesion.label
        border_px = 3.0 if lesion.label == GGO else 1.0  # half its width
        alpha = np.clip(0.5 + within * radius * SIZE_PX / (2 * border_px), 0, 1) * in_lung
        self.hu[box] += alpha * np.maximum(lesion.hu - self.hu[box], 0)

    def draw_vessels(self) -> None:
        """Draw tapering vessels from each hilum to the pleura."""
        drawn = Pillow.new("L", (SIZE_PX, SIZE_PX))
        pen = ImageDraw.Draw(drawn)
        for side in (-1, 1):
            hilum = np.array([side * (LUNG_X - 0.55 * self.rx), 0.0])
            for _ in range(self.patient.recipe.vessels):
                angle, reach = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0.1, 0.92)
                tip = np.array([side * LUNG_X, 0.0]) + reach * np.array(
                    [self.rx * np.cos(angle), self.ry * np.sin(angle)]
                )
                # A vessel crosses the slice: a dot, or a stroke along its way from the hilum.
                start = tip - self.rng.uniform(0, 0.35) * (tip - hilum)
                ends_px = [tuple((point + 0.5) * SIZE_PX) for point in (start, tip)]
                width = max(1, round(5.5 * (1 - reach)))
                pen.line([*ends_px[0], *ends_px[1]], fill=255, width=width)
                x, y = ends_px[0]
                pen.ellipse([x - width, y - width, x + width, y + width], fill=255)
        vessels = (np.asarray(drawn) > 0) & (self.labels != BACKGROUND)
        self.hu[vessels] = np.maximum(self.hu[vessels], BLOOD)

    def draw_bronchogram(self) -> None:
        """Draw airways that stay open inside a consolidation."""
        rows, cols = np.nonzero(self.labels == CONSOLIDATION)
        for i in self.rng.integers(0, max(1, len(rows)), size=len(rows) // 700):
            self.fill(AIR + 150, self.axis[cols[i]], self.axis[rows[i]], 0.004, 0.004)

    def draw_middle(self) -> None:
        """Spine and trachea."""
        self.fill(BONE, 0.0, 0.20, 0.055, 0.045)
        self.fill(MARROW, 0.0, 0.20, 0.047, 0.037)
        self.fill(BONE, 0.0, 0.265, 0.012, 0.03)
        self.fill(MUSCLE, 0.0, 0.243, 0.016, 0.014)  # the canal
        self.fill(AIR, 0.0, 0.02 + 0.05 * self.height, 0.018, 0.016)


def _cloud(rng: np.random.Generator, cells: int) -> Image:
    """A smooth random field of about unit variance with `cells` features a side."""
    coarse = Pillow.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    smooth = coarse.resize((SIZE_PX, SIZE_PX), Pillow.Resampling.BICUBIC)
    return np.asarray(smooth) * np.float32(1.4)  # interpolation takes from the variance


def visible_slice(patient: Patient, *, rng: np.random.Generator) -> PhantomSlice:
    """Return a slice that shows the patient's finding; any slice of a control."""
    while True:
        drawn = slice_of(patient, height=patient.visible_height(rng), rng=rng)
        if drawn.finding == patient.finding:
            return drawn


def slice_of(patient: Patient, *, height: float, rng: np.random.Generator) -> PhantomSlice:
    """One axial slice; height 0 is the top of the lungs, 1 the base."""
    canvas = _Canvas(patient, height=height, rng=rng)
    canvas.draw_wall()
    canvas.draw_lungs()
    haze = [lesion for lesion in patient.lesions if lesion.label == GGO]
    dense = [lesion for lesion in patient.lesions if lesion.label == CONSOLIDATION]
    for lesion in haze:
        canvas.draw_lesion(lesion)
    canvas.draw_vessels()  # they are visible in ground glass, not in a consolidation
    for lesion in dense:
        canvas.draw_lesion(lesion)
    canvas.draw_bronchogram()
    canvas.draw_middle()
    blurred = ndimage.gaussian_filter(canvas.hu, 0.8)  # a scanner's kernel blurs edges
    noise = rng.standard_normal(blurred.shape, dtype=np.float32) + 0.5 * _cloud(rng, 170)
    hu = np.clip(np.round(blurred + patient.noise_hu * noise), -1024, 3071)
    return PhantomSlice(hu=hu.astype(np.float32), labels=canvas.labels)
