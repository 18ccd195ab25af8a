"""What the paper and its author's repository report, each figure with the place where it stands.

In: nothing. Out: rows for the tables of the report, in per cent. The tables of the paper are images
in the source that was at hand, so only what its text says is here, and what the author's repository
lists; a table whose values are in neither says so instead of showing numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAPER: Final = "paper, text"
REPOSITORY: Final = "author’s repository"
MATRIX: Final = "author’s repository, computed from its matrix"
DOI: Final = "10.1007/s10489-021-02731-6"

CONTROL, PNEUMONIA, COVID = "control", "pneumonia", "covid"
ORDER: Final = (CONTROL, PNEUMONIA, COVID)  # of the author's matrices; the classes of a card too
TEST_SLICES: Final = (9450, 7395, 4346)  # of each class in COVIDx-CT's test split, in ORDER
REMAINING_SLICES: Final = 58_782  # COVIDx-CT's training slices without the 3000 used
AT_HAND: Final = (
    "The values of the paper’s own table are an image in the source at hand and are not repeated"
)

BOTH_MASKS: Final = ((9158, 278, 14), (204, 7030, 161), (15, 251, 4080))  # rows: truth, ORDER
MERGED_MASKS: Final = ((9236, 188, 26), (116, 7150, 129), (20, 298, 4028))


@dataclass(frozen=True)
class Sizes:
    """Table 1. Texts, since some are rounded where they stand."""

    name: str
    source: str
    training: str = ""
    test: str = ""
    ratio: str = ""
    parameters: str = ""


@dataclass(frozen=True)
class Classified:
    """Tables 4 and 5: per cent, None where the source gives none."""

    name: str
    source: str
    covid: float | None = None
    pneumonia: float | None = None
    control: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    test: str = ""


@dataclass(frozen=True)
class Segmented:
    """Table 6: average precision per image, per cent."""

    name: str
    source: str
    ap50: float | None = None
    ap75: float | None = None
    mean: float | None = None


Matrix = tuple[tuple[int, ...], ...]


def of_matrix(name: str, *, matrix: Matrix) -> Classified:
    """The figures that follow from a matrix; F1 weighted by the classes' shares (paper, eq. 3)."""
    true = [sum(row) for row in matrix]
    called = [sum(column) for column in zip(*matrix, strict=True)]
    right = [row[k] for k, row in enumerate(matrix)]
    control, pneumonia, covid = (100 * r / t for r, t in zip(right, true, strict=True))
    f1 = sum(t * 2 * r / (t + c) for r, t, c in zip(right, true, called, strict=True))
    return Classified(
        name,
        MATRIX,
        covid=covid,
        pneumonia=pneumonia,
        control=control,
        accuracy=100 * sum(right) / sum(true),
        f1=100 * f1 / sum(true),
    )


BEST: Final = Classified(
    "COVID-CT-Mask-Net, S + batch norm",
    PAPER,
    covid=90.80,
    pneumonia=91.62,
    control=92.10,
    accuracy=91.66,
    f1=91.50,
    test="21,192",
)

TABLE_1: Final = (
    Sizes("COVID-CT-Mask-Net", PAPER, training="3,000", test="21,192", ratio="7.06"),
    Sizes("COVIDNet-CT", PAPER, training="about 60,000", test="21,192", ratio="0.353"),
    Sizes("COVNet", PAPER, test="about 500"),
    Sizes("ResNet18 (the paper’s reference 3)", PAPER, test="90"),
    Sizes("Mask R-CNN, ResNet-34 t1", REPOSITORY, parameters="11.45 M"),
    Sizes("Mask R-CNN, ResNet-18 t1", REPOSITORY, parameters="6.12 M"),
)

TABLE_4: Final = (
    BEST,
    of_matrix("Both lesion masks", matrix=BOTH_MASKS),
    of_matrix("Merged lesion masks", matrix=MERGED_MASKS),
    # Listed as control, pneumonia, COVID: only in that order does 93.95 follow.
    Classified(
        "ResNet-18 t1", REPOSITORY, covid=91.35, pneumonia=91.63, control=96.98, accuracy=93.95
    ),
    Classified(
        "ResNet-34 t1", REPOSITORY, covid=91.76, pneumonia=91.70, control=92.89, accuracy=92.89
    ),
)

TABLE_5: Final = (
    BEST,
    Classified("ResNet18 (the paper’s reference 3)", PAPER, covid=81.20, test="90"),
    Classified("COVID-CT, two classes", PAPER, accuracy=89.0, test="about 350"),
    Classified("JCS, two classes", PAPER, f1=78.3, test="about 120,000"),
)

TABLE_6: Final = (
    Segmented("Both lesions apart", REPOSITORY, ap50=50.20, ap75=41.98, mean=38.71),
    Segmented("Merged lesions, ResNet-50", REPOSITORY, ap50=61.92, ap75=45.22, mean=44.68),
    Segmented("ResNet-34 t1", REPOSITORY, ap50=59.88, ap75=45.06, mean=44.76),
    Segmented("ResNet-18 t1", REPOSITORY, ap50=49.95, ap75=37.78, mean=39.32),
    Segmented("Mask R-CNN, both lesions", PAPER, mean=35.2),
)

NO_INTERVAL: Final = "A published figure has no interval."
NOTES: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "The paper’s text gives COVIDNet-CT’s ratio as 0.353; 21,192 test slices over the 61,782 "
        "training slices of COVIDx-CT are 0.343.",
        "The split files at hand list 21,191 test slices, the paper says 21,192.",
    ),
    4: (
        NO_INTERVAL,
        "The paper’s F1 of 91.50 does not follow from the matrix in the author’s repository, "
        "which gives 91.72.",
        "The accuracy published for ResNet-34 t1, 92.89, does not follow from its sensitivities, "
        "which give 92.24.",
    ),
    5: (
        NO_INTERVAL,
        "Other methods were measured on other slices, often few, some with two classes: the rows "
        "stand side by side and are not comparable.",
    ),
    6: (
        NO_INTERVAL,
        "The published AP is taken per image and averaged over images. COCO’s AP pools all images "
        "first. They are different figures, have different names here, and only the first is "
        "comparable.",
    ),
    7: (
        "The paper trained on 3,000 slices of COVIDx-CT’s training split and tested on the other "
        "58,782. 606 of the 608 patients of those 3,000 have slices among them too, so this set "
        "is not independent of training.",
    ),
    9: (
        "iCTCF, two classes: the paper fine-tuned on 600 slices for 10 epochs and tested on "
        "12,976 slices.",
    ),
}
MISSING: Final[dict[int, str]] = {
    1: f"{AT_HAND}; below is what its text and the author’s repository say.",
    4: f"{AT_HAND}; below is what its text and the author’s repository say.",
    5: f"{AT_HAND}; below is what its text says of other methods.",
    6: f"{AT_HAND}; below is what its text and the author’s repository say.",
    7: f"{AT_HAND}; its text says only that they agree with Table 4.",
    9: f"{AT_HAND}; its text gives no number for it.",
}
