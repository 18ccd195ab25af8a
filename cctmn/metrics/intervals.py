"""All figures of a classifier at one level, slices or patients, with their intervals.

In: true classes, scores and whose slices they are. Out: figures by id, from one set of resamples,
so that they may be compared with each other. Two models on the same slices are drawn together.

Shape suffixes: N slices, G patients, C classes, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cctmn.metrics import bootstrap, classification
from cctmn.metrics.bootstrap import RESAMPLES, Figure, Size, Values
from cctmn.metrics.calibration import Binned
from cctmn.metrics.classification import Ranking

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

WORDS: Final[Mapping[str, str]] = {
    "accuracy": "accuracy",
    "f1_weighted": "F1, mean of the classes by their share",
    "f1_macro": "F1, plain mean of the classes",
    "sensitivity": "sensitivity to {}",
    "ppv": "positive predictive value of {}",
    "specificity": "specificity to {}",
    "auc": "area under the ROC curve, {} against the rest",
    "ap": "average precision, {} against the rest",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "nll": "loss the network was trained with",
}
WORST: Final = ("accuracy", "f1_weighted", "sensitivity")
COMPARED: Final = ("accuracy", "f1_weighted", "f1_macro", "sensitivity")


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Sample:
    """Scored slices or patients, and where there are such, labelled slices without scores."""

    classes: tuple[str, ...]
    truth_N: Indices
    score_NC: Floats  # probabilities; the largest is the class called
    group_N: Indices
    groups: int
    unscored_truth: Indices
    unscored_group: Indices

    @property
    def called_N(self) -> Indices:  # noqa: N802 - a shape suffix
        """The class of the largest score."""
        return self.score_NC.argmax(axis=1)

    def alone(self) -> Sample:
        """The same with every slice as its own group: the naive bootstrap's view."""
        scored, unscored = len(self.truth_N), len(self.unscored_truth)
        number = np.arange(scored + unscored)
        return Sample(
            self.classes,
            self.truth_N,
            self.score_NC,
            number[:scored],
            scored + unscored,
            self.unscored_truth,
            number[scored:],
        )

    def counts(self) -> Floats:
        """Confusion of each group, C x (C + 1): the last column counts slices without scores."""
        classes = len(self.classes)
        counts_G = np.zeros((self.groups, classes, classes + 1))
        np.add.at(counts_G, (self.group_N, self.truth_N, self.called_N), 1)
        np.add.at(counts_G[..., classes], (self.unscored_group, self.unscored_truth), 1)
        return counts_G

    def rates(self) -> Callable[[Floats], Values]:
        """A statistic: the figures of the confusion matrix, and the worst case's."""
        classes = len(self.classes)
        counts_GX = self.counts().reshape(self.groups, -1)

        def statistic(weights_BG: Floats) -> Values:
            full = (weights_BG @ counts_GX).reshape(-1, classes, classes + 1)
            matrix, unscored = full[..., :classes], full[..., classes]
            found = classification.rates(matrix, classes=self.classes)
            worst = classification.rates(matrix, classes=self.classes, unscored_C=unscored)
            kept = {f"worst_case.{k}": v for k, v in worst.items() if k.split(".")[0] in WORST}
            return found | kept

        return statistic

    def rankings(self) -> dict[str, Ranking]:
        """Of each class against the rest."""
        return {
            name: Ranking.of(self.score_NC[:, k], self.truth_N == k)
            for k, name in enumerate(self.classes)
        }


def measure(
    sample: Sample, *, by: Resampling, level: str, binned: Binned | None = None
) -> dict[str, Figure]:
    """Every figure of a sample, ids without the level's prefix; `level` is for its words.

    Intervals over groups, and for slices the naive ones too.
    """
    values = {
        name: v[0] for name, v in _statistic(sample, binned)(np.ones((1, sample.groups))).items()
    }
    over_groups = _bootstrap(sample, binned, by)
    over_slices = _bootstrap(sample.alone(), binned, by) if level == "slices" else {}
    return {
        name: bootstrap.figure(
            f"{words(name)}, {level}",
            float(value),
            over_patients=over_groups[name],
            over_slices=over_slices.get(name),
            size=size_of(sample, name),
        )
        for name, value in values.items()
    }


def difference(one: Sample, other: Sample, *, by: Resampling) -> dict[str, Figure]:
    """One model's figures less the other's, on the same slices and in the same resamples."""
    assert one.groups == other.groups
    assert (one.truth_N == other.truth_N).all()

    def statistic_of(a: Sample, b: Sample) -> Callable[[Floats], Values]:
        first, second = a.rates(), b.rates()

        def statistic(weights_BG: Floats) -> Values:
            ours, theirs = first(weights_BG), second(weights_BG)
            return {k: ours[k] - theirs[k] for k in ours if k.split(".")[0] in COMPARED}

        return statistic

    def drawn(a: Sample, b: Sample) -> dict[str, Floats]:
        statistic = statistic_of(a, b)
        return bootstrap.bootstrap(
            a.groups, statistic, resamples=by.resamples, seed=by.seed, width=len(a.truth_N)
        )

    values = statistic_of(one, other)(np.ones((1, one.groups)))
    over_groups, over_slices = drawn(one, other), drawn(one.alone(), other.alone())
    return {
        name: bootstrap.figure(
            f"difference in {words(name)}, slices",
            float(value[0]),
            over_patients=over_groups[name],
            over_slices=over_slices[name],
            share=False,
            size=size_of(one, name),
        )
        for name, value in values.items()
    }


def _statistic(sample: Sample, binned: Binned | None) -> Callable[[Floats], Values]:
    rates, rankings = sample.rates(), sample.rankings()

    def statistic(weights_BG: Floats) -> Values:
        found = dict(rates(weights_BG))
        weights_BN = weights_BG[:, sample.group_N]
        for name, ranking in rankings.items():
            areas = classification.areas(ranking, weights_BN)
            found |= dict(zip((f"auc.{name}", f"ap.{name}"), areas, strict=True))
        if binned is not None:
            found |= binned.figures(weights_BG, group_N=sample.group_N)
        return found

    return statistic


def _bootstrap(sample: Sample, binned: Binned | None, by: Resampling) -> dict[str, Floats]:
    return bootstrap.bootstrap(
        sample.groups,
        _statistic(sample, binned),
        resamples=by.resamples,
        seed=by.seed,
        width=len(sample.truth_N),
    )


def words(name: str) -> str:
    """A figure's id in words, without its level."""
    worst = name.startswith("worst_case.")
    kind, _, of_class = name.removeprefix("worst_case.").partition(".")
    return WORDS[kind].format(of_class) + (", errors counted as wrong" if worst else "")


def size_of(sample: Sample, name: str) -> Size:
    """How many slices and patients a figure rests on: of a class, those that are it (or for a PPV
    were called it).
    """
    kind, _, of_class = name.removeprefix("worst_case.").partition(".")
    group_N, kept_N = sample.group_N, np.ones(len(sample.truth_N), np.bool_)
    if kind in ("sensitivity", "ppv"):
        of = sample.called_N if kind == "ppv" else sample.truth_N
        kept_N = of == sample.classes.index(of_class)
    groups = group_N[kept_N]
    if name.startswith("worst_case."):
        lost_N = (
            sample.unscored_truth == sample.classes.index(of_class) if of_class else slice(None)
        )
        groups = np.concatenate([groups, sample.unscored_group[lost_N]])
    return Size(len(groups), len(np.unique(groups)))
