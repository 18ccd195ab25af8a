"""Published results, in per cent, each with its source: the paper or its author's repository.

The tables of the paper are images in the available copy. Therefore only the values in its text and
those that the author's repository lists are here. A table without any such value says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAPER: Final = "paper, text"
REPOSITORY: Final = "author’s repository"
MATRIX: Final = "author’s repository, computed from its matrix"
DOI: Final = "10.1007/s10489-021-02731-6"

CONTROL, PNEUMONIA, COVID = "control", "pneumonia", "covid"
ORDER: Final = (CONTROL, PNEUMONIA, COVID)  # of the author's matrices and of a card
NOT_REPEATED: Final = (
    "The paper’s own table is an image in the available copy, so its values are not repeated"
)

BOTH_MASKS: Final = ((9158, 278, 14), (204, 7030, 161), (15, 251, 4080))  # rows: truth, ORDER
MERGED_MASKS: Final = ((9236, 188, 26), (116, 7150, 129), (20, 298, 4028))


@dataclass(frozen=True)
class Sizes:
    """A row of Table 1. The sizes are texts, because some sources round them."""

    name: str
    source: str
    training: str = ""
    test: str = ""
    ratio: str = ""
    parameters: str = ""


@dataclass(frozen=True)
class Classified:
    """A row of Tables 4 and 5: per cent, None where the source gives no value."""

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
    """A row of Table 6: average precision per image, per cent."""

    name: str
    source: str
    ap50: float | None = None
    ap75: float | None = None
    mean: float | None = None


Matrix = tuple[tuple[int, ...], ...]


def from_matrix(name: str, *, matrix: Matrix) -> Classified:
    """Compute a row from a confusion matrix; F1 is weighted by class size (paper, eq. 3)."""
    true = [sum(row) for row in matrix]
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    right = [row[k] for k, row in enumerate(matrix)]
    control, pneumonia, covid = (100 * r / t for r, t in zip(right, true, strict=True))
    f1 = sum(t * 2 * r / (t + c) for r, t, c in zip(right, true, predicted, strict=True))
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
    from_matrix("Both lesion masks", matrix=BOTH_MASKS),
    from_matrix("Merged lesion masks", matrix=MERGED_MASKS),
    # The source lists control, pneumonia, COVID: only in that order does 93.95 follow.
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

NO_INTERVAL: Final = "The published values have no interval."
NOTES: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "The paper’s text gives a ratio of 0.353 for COVIDNet-CT; 21,192 test slices divided by "
        "the 61,782 training slices of COVIDx-CT are 0.343.",
        "The available split files list 21,191 test slices; the paper says 21,192.",
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
        "Other methods were measured on other slices, often on few, and some with two classes. The "
        "rows are shown together but are not comparable.",
    ),
    6: (
        NO_INTERVAL,
        "The published AP is computed per image and averaged over images. COCO’s AP pools all "
        "images first. The two are different metrics with different names here, and only the first "
        "is comparable.",
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
    1: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    4: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    5: f"{NOT_REPEATED}. The rows below come from its text on other methods.",
    6: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    7: f"{NOT_REPEATED}. Its text says only that they agree with Table 4.",
    9: f"{NOT_REPEATED}. Its text gives no number for it.",
}
