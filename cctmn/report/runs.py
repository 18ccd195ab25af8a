"""Several evaluations on one page: they are of the same labels, and each has a name of its own.

The first run is the page's own. The metrics of the others have ids with a prefix, so that each of
them has a row in the appendix too.

Reads: metrics.json in the folder of each run, local or on S3.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cctmn import store
from cctmn.errors import ConfigError, DataError
from cctmn.metrics.metric import Metric, describe, whole
from cctmn.numerics import described
from cctmn.report.evaluation import RERUN, Evaluation, read
from cctmn.report.numbers import DASH, count_text

# Names of the variants of stage 2 and stage 1, as the settings of training spell them.
VARIANTS: Final = {
    "s": "S",
    "s+bn": "S + batch norm",
    "all": "all weights",
    "heads": "heads",
    "full": "full",
}


@dataclass(frozen=True)
class Run:
    """An evaluation with the name that tables give it."""

    evaluation: Evaluation
    name: str
    prefix: str = ""  # of the ids of its metrics on the page; "" for the page's own run

    def metric(self, id_: str) -> Metric | None:
        """Return the metric with this id in the file, under its id on the page."""
        metric = self.evaluation.metrics.get(id_)
        if metric is None or not self.prefix:
            return metric
        description = f"{self.name}: {metric.description}"
        return replace(metric, id=self.prefix + id_, description=description)

    @property
    def is_classified(self) -> bool:
        """Whether classes were evaluated."""
        return "slice.accuracy" in self.evaluation.metrics

    @property
    def variant(self) -> str:
        """The weights that its training changed, "" if the card does not say it."""
        training = self.evaluation.section("model").get("training") or {}
        variant = (training.get("settings") or {}).get("variant")
        return VARIANTS.get(variant, "") if isinstance(variant, str) else ""

    @property
    def limits(self) -> tuple[str, str]:
        """The minimum score and the NMS threshold of its lesions, "" where the card lacks them."""
        rule = self.evaluation.section("model").get("lesions") or {}
        values = (rule.get("min_score"), rule.get("nms_iou"))
        score, nms = ("" if value is None else f"{value:g}" for value in values)
        return score, nms


@dataclass(frozen=True)
class ComparedRow:
    """A line of the table of runs: a text or a metric for each of them."""

    name: str
    texts: tuple[str, ...] = ()
    metrics: tuple[Metric | None, ...] = ()


def single(evaluation: Evaluation) -> Run:
    """Return an evaluation that stands alone on its page."""
    return Run(evaluation, _name(evaluation))


def read_runs(evaluation: Evaluation, *, folder: str, others: Sequence[str]) -> tuple[Run, ...]:
    """Return the page's own run and those in the folders `others`, in this order.

    Raises ConfigError if a folder is given twice, and DataError if one holds no evaluation or is
    of other labels, masks or classes.
    """
    places = [store.to_uri(place).rstrip("/") for place in (folder, *others)]
    for place, count in Counter(places).items():
        if count > 1:
            raise ConfigError("given twice; give each run once", store.display(place))
    evaluations = [evaluation]
    for place in others:
        other = read(place)
        check = functools.partial(_check, evaluation, other)
        other.build("labels, detection", make=check)
        evaluations.append(other)
    names = [_name(one) for one in evaluations]
    doubled = {name for name, count in Counter(names).items() if count > 1}
    return tuple(
        Run(
            one,
            f"{name} (run {number})" if name in doubled else name,
            f"run-{number}." if number > 1 else "",
        )
        for number, (one, name) in enumerate(zip(evaluations, names, strict=True), 1)
    )


def side_by_side(runs: Sequence[Run]) -> tuple[ComparedRow, ...]:
    """Return the table of several runs: what they are, then each metric that one of them has."""
    if len(runs) < 2:
        return ()
    facts = [
        ("model", [_text(run, "model", "model_id") for run in runs]),
        ("trained weights", [run.variant or DASH for run in runs]),
        ("predictions computed in", [_computed(run) for run in runs]),
        ("training slices", [_count(run, "training", "slices") for run in runs]),
        ("labelled slices", [_count(run, "accounting", "labelled") for run in runs]),
        ("evaluated slices", [_count(run, "accounting", "evaluated") for run in runs]),
        ("images with lesion masks", [_count(run, "detection", "images") for run in runs]),
        ("of them with a prediction", [_count(run, "detection", "joined") for run in runs]),
    ]
    if any(run.evaluation.section("detection") for run in runs):
        facts += [
            ("lesions: score above", [run.limits[0] or DASH for run in runs]),
            ("lesions: NMS at IoU", [run.limits[1] or DASH for run in runs]),
        ]
    rows = [ComparedRow(name, tuple(texts)) for name, texts in facts if set(texts) != {DASH}]
    for id_, name in _compared_ids(runs[0].evaluation.classes or runs[-1].evaluation.classes):
        metrics = tuple(run.metric(id_) for run in runs)
        if any(metrics):
            rows.append(ComparedRow(name, metrics=metrics))
    return tuple(rows)


def appendix(runs: Sequence[Run]) -> list[Metric]:
    """Return the metrics of the other runs that the page shows."""
    classes = {name: None for run in runs for name in run.evaluation.classes}
    ids = [id_ for id_, _ in _compared_ids(tuple(classes))]
    return [m for run in runs if run.prefix for id_ in ids if (m := run.metric(id_)) is not None]


def warnings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the warnings of the other runs that the page does not show anyway, with their run."""
    own = set(map(str, runs[0].evaluation.section("warnings")))
    return [
        (run.name, text)
        for run in runs[1:]
        for text in map(str, run.evaluation.section("warnings"))
        if text not in own
    ]


def _compared_ids(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the ids that several runs are compared by, and the names of their rows."""
    overall = ["accuracy", "f1_weighted"]
    by_class = [f"{kind}.{name}" for kind in ("sensitivity", "ppv") for name in classes]
    for level, noun in (("slice", "slices"), ("patient", "patients")):
        for name in [*overall, *by_class]:
            shown = describe(name).replace("positive predictive value", "PPV")
            shown = "F1, weighted" if name == "f1_weighted" else shown
            yield f"{level}.{name}", f"{shown}, {noun}"
    for kind, noun in (("mask", "masks"), ("box", "boxes")):
        for average, words in (("image", "AP per image"), ("coco", "AP pooled (COCO)")):
            for part, at in (("ap50", "0.50"), ("ap75", "0.75"), ("map", "0.50:0.95")):
                yield f"detection.{kind}.{average}_{part}", f"{words} at IoU {at}, {noun}"


def _check(first: Evaluation, other: Evaluation) -> None:
    """Raise DataError unless both are of the same labels and of the same masks."""
    shared = 0
    one, two = first.section("labels"), other.section("labels")
    if one and two:
        shared += 1
        if sorted(first.classes) != sorted(other.classes):
            raise DataError(
                f"has the classes {', '.join(other.classes)}, the first run "
                f"{', '.join(first.classes)}; report it alone, or give runs of the same classes",
                other.uri,
            )
        same_set = one.get("known_set") is not None and one.get("known_set") == two.get("known_set")
        same_file = one.get("sha256") is not None and one.get("sha256") == two.get("sha256")
        if not (same_set or same_file) or one.get("by_class") != two.get("by_class"):
            raise DataError(
                f"has other labels ({count_text(whole(two.get('slices')))} slices) than the first "
                f"run ({count_text(whole(one.get('slices')))}); evaluate it with the same "
                "--labels, or report it alone",
                other.uri,
                f"{two.get('name')} and {one.get('name')}",
            )
    masks, other_masks = first.section("detection"), other.section("detection")
    if masks and other_masks:
        shared += 1
        for evaluation, part in ((first, masks), (other, other_masks)):
            if not part.get("masks_sha256"):
                raise DataError(
                    "an older version of cctmn wrote it and did not record which masks it "
                    f"compared; {RERUN}",
                    evaluation.uri,
                )
        if masks["masks_sha256"] != other_masks["masks_sha256"]:
            raise DataError(
                f"has other lesion masks ({count_text(whole(other_masks.get('images')))} images) "
                f"than the first run ({count_text(whole(masks.get('images')))}); evaluate it with "
                "the same --masks and --mask-split, or report it alone",
                other.uri,
            )
    if not shared:
        raise DataError(
            "has nothing in common with the first run: one compares classes, the other lesions; "
            "give runs that were evaluated with the same --labels or --masks",
            other.uri,
        )


def _name(evaluation: Evaluation) -> str:
    def make() -> str:
        return str(evaluation.section("model").get("name") or "this model")

    return evaluation.build("model", make=make)


def _text(run: Run, section: str, key: str) -> str:
    value: Any = run.evaluation.section(section).get(key)
    return DASH if value is None else str(value)


def _computed(run: Run) -> str:
    scoring = run.evaluation.section("scoring")
    return described(scoring) if scoring.get("precision") else DASH


def _count(run: Run, section: str, key: str) -> str:
    return count_text(whole(run.evaluation.section(section).get(key)))
