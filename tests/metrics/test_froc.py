"""Weighted AP and FROC: against COCO's own tools, against repeated images, and by hand."""

from __future__ import annotations

import contextlib
import io
import itertools

import numpy as np
import pytest

from cctmn.metrics import detection
from cctmn.metrics.detection import Instances
from cctmn.metrics.froc import Matches
from cctmn.metrics.metric import FROC_RATES
from cctmn.rle import encode

CLASSES = ("ggo", "consolidation")
SIDE = 48


def blocks(rng, count):
    """Return masks of rectangles, and their boxes."""
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        x, y = rng.integers(0, SIDE - 12, 2)
        w, h = rng.integers(4, 12, 2)
        masks[i, y : y + h, x : x + w] = 1
        boxes[i] = (x, y, x + w, y + h)
    return masks, boxes


def made(images, *, seed=0):
    """Return shifted copies of true lesions with false detections among them, and the truth."""
    rng = np.random.default_rng(seed)
    detected, truth = [], []
    for _ in range(images):
        count = rng.integers(0, 5)
        masks, boxes = blocks(rng, count)
        labels = rng.integers(1, 3, count)
        truth.append(Instances(encode(masks), labels, np.ones(count, np.float32), boxes))
        shift = rng.integers(-2, 3, (count, 2))
        moved = np.stack(
            [np.roll(m, s, axis=(0, 1)) for m, s in zip(masks, shift, strict=True)]
            or [np.zeros((SIDE, SIDE), np.uint8)]
        )[:count]
        offset = np.concatenate([shift[:, ::-1], shift[:, ::-1]], axis=1)
        false, false_boxes = blocks(rng, rng.integers(0, 6))
        predicted = np.where(rng.uniform(size=count) < 0.9, labels, 3 - labels)
        detected.append(
            Instances(
                encode(np.concatenate([moved, false])),
                np.concatenate([predicted, rng.integers(1, 3, len(false))]),
                rng.uniform(size=count + len(false)).astype(np.float32),
                np.concatenate([boxes + offset, false_boxes]).astype(np.float32),
            )
        )
    return detected, truth


def ones(images):
    return np.ones((1, images))


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_equals_pycocotools(kind, seed):
    detected, truth = made(25, seed=seed)
    figures = Matches.from_instances(detected, truth, classes=CLASSES, kind=kind).metrics(ones(25))
    evaluation = detection.matched(detected, truth, classes=CLASSES, kind=kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]
    expected = {"ap50": precision[0], "ap75": precision[5], "map": precision}
    for name, values in expected.items():
        assert figures[f"coco_{name}"][0] == pytest.approx(values.mean(), abs=1e-6)


def test_masks_give_the_summary_of_training():
    detected, truth = made(20)
    summary = detection.summary(detected, truth, classes=CLASSES)
    figures = Matches.from_instances(detected, truth, classes=CLASSES, kind="mask").metrics(
        ones(20)
    )
    assert {k: float(v[0]) for k, v in figures.items()} == pytest.approx(
        {k: summary[k] for k in figures}, abs=1e-9
    )


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_a_weight_equals_repeated_images(kind):
    detected, truth = made(15, seed=7)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, (3, 15)).astype(float)
    matches = Matches.from_instances(detected, truth, classes=CLASSES, kind=kind)
    figures, froc = matches.metrics(weights), matches.froc(weights)
    for b in range(3):
        rows = np.arange(15).repeat(weights[b].astype(int))
        drawn = [[images[i] for i in rows] for images in (detected, truth)]
        again = Matches.from_instances(*drawn, classes=CLASSES, kind=kind)
        for ours, theirs in (
            (figures, again.metrics(ones(len(rows)))),
            (froc, again.froc(ones(len(rows)))),
        ):
            for name, values in theirs.items():
                assert ours[name][b] == pytest.approx(values[0], abs=1e-9), name


def square(*lesions):
    """Boxes of 10 px on one row: (x, label, score)."""
    boxes = [(x, 0, x + 10, 10) for x, *_ in lesions]
    labels = [label for _, label, _ in lesions]
    scores = [score for *_, score in lesions]
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Instances([], np.array(labels, np.int64), np.array(scores, np.float32), corners)


def test_boxes_by_hand():
    """IoU of boxes moved by 2 of 10 px is 8 / 12: a hit at 0.5 and 0.65, none at 0.7."""
    detected, truth = [square((2, 1, 0.9))], [square((0, 1, 1.0))]
    figures = Matches.from_instances(detected, truth, classes=CLASSES, kind="box").metrics(ones(1))
    assert figures["image_ap50"][0] == 1
    assert figures["coco_ap50"][0] == pytest.approx(1)
    assert figures["image_ap75"][0] == figures["coco_ap75"][0] == 0
    assert figures["image_map"][0] == pytest.approx(4 / 10)


def test_froc_by_hand():
    """Two images, three lesions. By falling score: hit, false, hit, wrong class, false, hit."""
    truth = [square((0, 1, 1), (20, 2, 1)), square((0, 1, 1))]
    detected = [
        square((0, 1, 0.9), (40, 1, 0.8), (20, 2, 0.7), (60, 1, 0.5)),
        square((0, 2, 0.6), (0, 1, 0.4)),
    ]
    matches = Matches.from_instances(detected, truth, classes=CLASSES, kind="box")
    froc = {name: float(v[0]) for name, v in matches.froc(ones(2)).items()}
    assert froc["at_0.125"] == froc["at_0.25"] == pytest.approx(1 / 3)  # no false positive
    assert froc["at_0.5"] == pytest.approx(2 / 3)  # one
    assert froc["at_1"] == pytest.approx(2 / 3)  # two
    assert froc["at_2"] == froc["at_4"] == froc["at_8"] == pytest.approx(1)
    points = [froc[f"at_{rate:g}"] for rate in FROC_RATES]
    assert froc["mean"] == pytest.approx(np.mean(points))
    curve = matches.froc_curve()
    assert curve["x"] == [0, 0, 0.5, 0.5, 1, 1.5, 1.5]
    assert curve["y"] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1], abs=1e-5)


def test_froc_counts_equal_scores_together():
    """A hit and two false detections have one score: whoever takes one takes all."""
    truth = [square((0, 1, 1), (20, 2, 1))]
    for boxes in itertools.permutations([(0, 1, 0.6), (40, 1, 0.6), (60, 1, 0.6)]):
        detected = [square((20, 2, 0.9), *boxes)]
        matches = Matches.from_instances(detected, truth, classes=CLASSES, kind="box")
        froc = {name: float(v[0]) for name, v in matches.froc(ones(1)).items()}
        assert froc["at_1"] == pytest.approx(1 / 2)
        assert froc["at_2"] == pytest.approx(1)
        assert matches.froc_curve() == {"x": [0, 0, 2], "y": [0, 0.5, 1]}


def test_images_without_detections_or_lesions():
    none = square()
    nothing = Matches.from_instances([none], [square((0, 1, 1))], classes=CLASSES, kind="box")
    assert nothing.metrics(ones(1))["coco_ap50"][0] == 0
    assert nothing.froc(ones(1))["at_8"][0] == 0
    assert nothing.froc_curve() == {"x": [0.0], "y": [0.0]}
    empty = Matches.from_instances([none], [none], classes=CLASSES, kind="box").metrics(ones(1))
    assert empty["image_map"][0] == 1
    assert np.isnan(empty["coco_map"][0])
