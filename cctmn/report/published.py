"""Published results, in per cent, each with its source: the paper or its author's repository.

The tables of the paper are images in the available copy. Therefore only the values in its text and
those that the author's repositories list are here. A table without any such value says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAPER: Final = "paper, text"
REPOSITORY: Final = "author’s repository"
MATRIX: Final = "author’s repository, computed from its matrix"
HISTORY: Final = "history of the author’s repository"
HISTORY_MATRIX: Final = "history of the author’s repository, computed from its matrix"
CODE: Final = "author’s code"
LATER: Final = "author’s later repositories"
LATER_MATRIX: Final = "author’s later repositories, computed from a matrix"
DOI: Final = "10.1007/s10489-021-02731-6"

CONTROL, PNEUMONIA, COVID = "control", "pneumonia", "covid"
ORDER: Final = (CONTROL, PNEUMONIA, COVID)  # of the author's matrices and of a card
NOT_REPEATED: Final = (
    "The paper’s own table is an image in the available copy, so its values are not repeated"
)

BOTH_MASKS: Final = ((9158, 278, 14), (204, 7030, 161), (15, 251, 4080))  # rows: truth, ORDER
MERGED_MASKS: Final = ((9236, 188, 26), (116, 7150, 129), (20, 298, 4028))
# Of the paper's best model, by its sensitivities and accuracy; nine slices of CP are missing.
OLDER: Final = ((8703, 738, 9), (406, 6767, 213), (14, 386, 3946))
SINGLE_SHOT: Final = ((9322, 123, 5), (174, 7139, 82), (27, 277, 4042))

Value = float | str | None  # per cent; a text is a range, None: the source gives no value


@dataclass(frozen=True)
class Sizes:
    """A row of Table 1. The sizes are texts, because some sources round them.

    `module_s` and `with_batch_norm` are the parameters that the variants S and S + BN train.
    """

    name: str
    source: str
    training: str = ""
    test: str = ""
    ratio: str = ""
    parameters: str = ""
    module_s: str = ""
    with_batch_norm: str = ""


@dataclass(frozen=True)
class Classified:
    """A row of Tables 4, 5 and 9; `trained` is the variant of training where it is known."""

    name: str
    source: str
    covid: Value = None
    pneumonia: Value = None
    control: Value = None
    accuracy: Value = None
    f1: Value = None
    test: str = ""
    trained: str = ""


@dataclass(frozen=True)
class Segmented:
    """A row of Table 6: average precision per image, and the limits of the detections.

    Detections have a score above `min_score`, and the RoI head's NMS has the threshold `nms`.
    """

    name: str
    source: str
    ap50: Value = None
    ap75: Value = None
    mean: Value = None
    min_score: str = ""
    nms: str = ""


@dataclass(frozen=True)
class Counted:
    """A row of Table 8: numbers of slices."""

    name: str
    source: str
    control: int
    covid: int


@dataclass(frozen=True)
class Hyperparameter:
    """A published value of Table 2 or 3, with its source."""

    value: str
    source: str


Matrix = tuple[tuple[int, ...], ...]


def from_matrix(
    name: str, *, matrix: Matrix, source: str = MATRIX, trained: str = ""
) -> Classified:
    """Compute a row from a confusion matrix; F1 is weighted by class size (paper, eq. 3)."""
    true = [sum(row) for row in matrix]
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    right = [row[k] for k, row in enumerate(matrix)]
    control, pneumonia, covid = (100 * r / t for r, t in zip(right, true, strict=True))
    f1 = sum(t * 2 * r / (t + c) for r, t, c in zip(right, true, predicted, strict=True))
    return Classified(
        name,
        source,
        covid=covid,
        pneumonia=pneumonia,
        control=control,
        accuracy=100 * sum(right) / sum(true),
        f1=100 * f1 / sum(true),
        trained=trained,
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
    trained="S + batch norm",
)

TABLE_1: Final = (
    Sizes("COVID-CT-Mask-Net", PAPER, training="3,000", test="21,192", ratio="7.06"),
    Sizes("COVIDNet-CT", PAPER, training="about 60,000", test="21,192", ratio="0.353"),
    Sizes("COVNet", PAPER, test="about 500"),
    Sizes("ResNet18 (the paper’s reference 3)", PAPER, test="90"),
    *(
        Sizes(
            f"COVID-CT-Mask-Net, {backbone}",
            REPOSITORY,
            parameters=f"{parameters} M",
            module_s=f"{module_s} M",
            with_batch_norm=f"{with_batch_norm} M",
        )
        for backbone, parameters, module_s, with_batch_norm in (
            ("ResNet-50", "34.14", "2.36", "2.42"),
            ("ResNet-34 t0", "24.86", "0.59", "0.60"),
            ("ResNet-34 t1", "11.74", "0.59", "0.60"),
            ("ResNet-34 t2", "4.92", "0.59", "0.60"),
            ("ResNet-18 t0", "14.75", "0.59", "0.60"),
            ("ResNet-18 t1", "6.35", "0.59", "0.60"),
            ("ResNet-18 t2", "4.25", "0.59", "0.60"),
        )
    ),
    Sizes("Mask R-CNN, ResNet-50", REPOSITORY, parameters="31.78 M"),
    Sizes("Mask R-CNN, ResNet-34 t1", REPOSITORY, parameters="11.45 M"),
    Sizes("Mask R-CNN, ResNet-18 t1", REPOSITORY, parameters="6.12 M"),
)

# By the name of the row in `hyperparameters`; what the paper's text and the author's code give.
TABLE_2: Final[dict[str, Hyperparameter]] = {
    "anchor sizes, px": Hyperparameter("2, 4, 8, 16, 32", CODE),
    "anchor aspect ratios": Hyperparameter("0.1, 0.25, 0.5, 1, 1.5, 2", CODE),
    "RPN IoU, positive and negative": Hyperparameter("0.7, 0.3", CODE),
    "RPN batch, positive fraction": Hyperparameter("256, 0.75", CODE),
    "RPN NMS": Hyperparameter("0.75", CODE),
    "RPN output, training and test": Hyperparameter("2,000, 1,000", CODE),
    "RoI IoU, positive and negative": Hyperparameter("0.75, 0.5", CODE),
    "RoI batch, positive fraction": Hyperparameter("256, 0.75", CODE),
    "RoI NMS": Hyperparameter("0.5", CODE),
    "RoI score": Hyperparameter("above 0.05", CODE),
    "RoI output": Hyperparameter("128", CODE),
    "training slices": Hyperparameter("650", PAPER),
    "trained weights": Hyperparameter("heads, full", PAPER),
    "initial weights": Hyperparameter("imagenet", PAPER),
    "optimiser": Hyperparameter("Adam", PAPER),
    "learning rate": Hyperparameter("1e-05", PAPER),
    "weight decay": Hyperparameter("0.001", PAPER),
    "batch size": Hyperparameter("1", CODE),
    "epochs": Hyperparameter("100", PAPER),
}
TABLE_3: Final[dict[str, Hyperparameter]] = {
    "RPN NMS": Hyperparameter("0.75", PAPER),
    "RPN output": Hyperparameter("1,000", CODE),
    "RoI NMS": Hyperparameter("0.75", PAPER),
    "RoI score": Hyperparameter("above -0.01", PAPER),
    "ranked boxes (N)": Hyperparameter("256; lightweight 128", CODE),
    "width of S (F)": Hyperparameter("1,024; lightweight 512", CODE),
    "training slices": Hyperparameter("3,000", PAPER),
    "trained weights": Hyperparameter("s, s+bn, all", PAPER),
    "loss": Hyperparameter("bce", CODE),
    "optimiser": Hyperparameter("Adam", PAPER),
    "learning rate": Hyperparameter("1e-05", PAPER),
    "weight decay": Hyperparameter("0.001", PAPER),
    "batch size": Hyperparameter("8", CODE),
    "epochs": Hyperparameter("50", PAPER),
}

TABLE_4: Final = (
    BEST,
    from_matrix(
        "The same as a matrix, 21,182 slices",
        matrix=OLDER,
        source=HISTORY_MATRIX,
        trained="S + batch norm",
    ),
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

# On the same slices of COVIDx-CT.
LATER_4: Final = (
    from_matrix("Single Shot Model", matrix=SINGLE_SHOT, source=LATER_MATRIX),
    Classified("LSTM with attention", LATER, covid=95.74, pneumonia=98.13, control=99.27, f1=98.15),
    Classified(
        "ResNet50, whole slice", LATER, covid=91.04, pneumonia=97.64, control=98.97, f1=96.88
    ),
    Classified("ResNeXt50, whole slice", LATER, f1=87.31),
    Classified("ResNeXt101, whole slice", LATER, f1=92.86),
    Classified("DenseNet121, whole slice", LATER, f1=96.15),
    Classified("Affinity, five sizes", LATER, f1="90.30 to 93.80"),
)

TABLE_5: Final = (
    BEST,
    Classified("ResNet18 (the paper’s reference 3)", PAPER, covid=81.20, test="90"),
    Classified("COVID-CT, two classes", PAPER, accuracy=89.0, test="about 350"),
    Classified("JCS, two classes", PAPER, f1=78.3, test="about 120,000"),
)

TABLE_6: Final = (
    *(
        Segmented(name, REPOSITORY, ap50, ap75, mean, min_score="0.05", nms="0.5")
        for name, ap50, ap75, mean in (
            ("Both lesions apart", 50.20, 41.98, 38.71),
            ("Merged lesions, ResNet-50", 61.92, 45.22, 44.68),
            ("ResNet-34 t1", 59.88, 45.06, 44.76),
            ("ResNet-18 t1", 49.95, 37.78, 39.32),
        )
    ),
    Segmented("Mask R-CNN, both lesions", PAPER, mean=35.2),
)
OLDER_6: Final = (
    Segmented("Both lesions apart", HISTORY, 50.74, 29.92, 34.06),
    Segmented("Merged lesions", HISTORY, 70.93, 44.26, 46.46),
    Segmented("ResNet-34 t1", HISTORY, 67.16, 42.97, 45.01),
    Segmented("ResNet-18 t1", HISTORY, 63.20, 37.29, 42.71),
)
LATER_6: Final = (
    Segmented("Single Shot Model", LATER, 57.99, 38.28, 42.45),
    Segmented("LSTM with attention", LATER, 60.5, 49.7, 47.0),
)

# iCTCF: by class in the author's lists; the paper's text gives the sums, 600 and 12,976.
TABLE_8: Final = (
    Counted("training", REPOSITORY, control=300, covid=300),
    Counted("test", REPOSITORY, control=9275, covid=3701),
)

LATER_9: Final = (
    Classified("Single Shot Model", LATER, control=94.12, covid=98.78, f1=95.45),
    # The source gives no names to the three; F1 of 98.41 follows only in this order.
    Classified("LSTM with attention", LATER, control=98.68, covid=97.73, f1=98.41),
    Classified("Affinity", LATER, f1="83.67 to 92.00"),
    Classified("VGG16", LATER, control=85.47, covid=97.00),
)

LATER_HEADING: Final = "For context: later models of other architectures by the same author"
OLDER_HEADING: Final = (
    "Older figures from the history of the author’s repository, under other score and NMS limits"
)

NO_INTERVAL: Final = "The published values have no interval."
NOTES: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "The paper’s text gives a ratio of 0.353 for COVIDNet-CT; 21,192 test slices divided by "
        "the 61,782 training slices of COVIDx-CT are 0.343.",
        "The available split files list 21,191 test slices; the paper says 21,192.",
        "Parameters are those that an optimiser can train. The published counts of detectors "
        "include the running statistics of batch norm, and that of the ResNet-50 classifier the "
        "mask branch, which it does not use; the page Measurements of the documentation compares "
        "the counts part by part.",
        "The paper’s text says that S has 2.26 million trainable parameters; the repository says "
        "2.36, and 2,364,419 follow from its layers.",
    ),
    2: (
        "What is marked as fixed is the same for every model of cctmn; the rest comes from the "
        "card of the model. An epoch is one pass over the training slices.",
    ),
    3: (
        "What is marked as fixed is the same for every model of cctmn; the rest comes from the "
        "card of the model.",
        "With the variant all, cctmn does not train the RPN, because no gradient reaches it "
        "through the proposals.",
    ),
    4: (
        NO_INTERVAL,
        "The matrix in the history of the author’s repository gives the paper’s sensitivities and "
        "accuracy, but an F1 of 91.72 where the paper says 91.50. It has 21,182 slices: nine of "
        "common pneumonia are missing.",
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
        "An AP depends on the limits of the detections: their minimum score and the NMS of the RoI "
        "head stand beside each value, – where the source does not state them. Values under "
        "different limits are not comparable.",
    ),
    7: (
        "The paper trained on 3,000 slices of COVIDx-CT’s training split and tested on the other "
        "58,782. 606 of the 608 patients of those 3,000 have slices among them too, so this set "
        "is not independent of training.",
    ),
    8: (
        "The author’s list of test slices is not public in full, so a run is recognised by its "
        "numbers of slices of each class.",
    ),
    9: (
        NO_INTERVAL,
        "iCTCF, two classes: the paper fine-tuned on 600 slices for 10 epochs and tested on "
        "12,976 slices.",
    ),
}
MISSING: Final[dict[int, str]] = {
    1: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    2: f"{NOT_REPEATED}. The published column comes from its text and from the author’s code.",
    3: f"{NOT_REPEATED}. The published column comes from its text and from the author’s code.",
    4: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    5: f"{NOT_REPEATED}. The rows below come from its text on other methods.",
    6: f"{NOT_REPEATED}. The rows below come from its text and from the author’s repository.",
    7: f"{NOT_REPEATED}. Its text says only that they agree with Table 4.",
    8: f"{NOT_REPEATED}. The counts below come from the author’s repository.",
    9: f"{NOT_REPEATED}. Its text gives no number for it.",
}
