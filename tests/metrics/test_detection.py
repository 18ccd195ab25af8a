"""Both average precisions: by hand on rows of pixels, and against dense masks and loops."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from cctmn.metrics import detection
from cctmn.metrics.detection import IOUS, Instances, image_ap
from cctmn.rle import encode

WIDTH = 40
A, B = 1, 2
CLASSES = ("a", "b")


def row(*lesions):
    """Lesions in an image of one row: (first px, px after the last, label, score)."""
    masks = np.zeros((len(lesions), 1, WIDTH), dtype=np.uint8)
    for mask, (first, end, *_) in zip(masks, lesions, strict=True):
        mask[0, first:end] = 1
    labels = [lesion[2] if len(lesion) > 2 else A for lesion in lesions]
    scores = [lesion[3] if len(lesion) > 3 else 1.0 for lesion in lesions]
    return Instances(encode(masks), np.array(labels, np.int64), np.array(scores, np.float32))


def coco(predicted, truth, *, classes=CLASSES):
    whole = detection.summary(predicted, truth, classes=classes)
    return {key: value for key, value in whole.items() if key.startswith("coco")}


TWO = row((0, 10), (20, 30))
NONE = row()


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        pytest.param(NONE, NONE, 1, id="nothing there, nothing found"),
        pytest.param(NONE, TWO, 0, id="nothing found"),
        pytest.param(TWO, NONE, 0, id="nothing there"),
        pytest.param(TWO, TWO, 1, id="perfect"),
        pytest.param(row((0, 10, B, 0.9)), row((0, 10, A)), 0, id="wrong class"),
        pytest.param(row((0, 10, B, 0.9), (0, 8, A, 0.8)), row((0, 10)), 1 / 2, id="false class"),
        pytest.param(row((0, 10, A, 0.9)), TWO, 1 / 2, id="one of two missed"),
        pytest.param(row((30, 40)), row((0, 10)), 0, id="elsewhere"),
        pytest.param(row((0, 0, A, 0.9), (0, 10, A, 0.8)), row((0, 10)), 1 / 2, id="empty mask"),
        pytest.param(row((0, 0)), row((0, 10)), 0, id="only an empty mask"),
        # Hits and misses by falling score; recall grows by 1/2 at each hit.
        pytest.param(row((0, 10, A, 0.9), (20, 30, A, 0.8), (32, 40, A, 0.7)), TWO, 1, id="HHM"),
        pytest.param(
            row((0, 10, A, 0.9), (20, 30, A, 0.7), (32, 40, A, 0.8)), TWO, 5 / 6, id="HMH"
        ),
        pytest.param(
            row((0, 10, A, 0.8), (20, 30, A, 0.7), (32, 40, A, 0.9)), TWO, 2 / 3, id="MHH"
        ),
        pytest.param(
            row((32, 40, A, 0.5), (0, 10, A, 0.5)), row((0, 10)), 1 / 2, id="tie in order"
        ),
        # The lesion takes the best overlap, not the best score.
        pytest.param(row((0, 10, A, 0.9), (0, 8, A, 0.8)), row((0, 10)), 1, id="second is worse"),
        pytest.param(
            row((0, 8, A, 0.9), (0, 10, A, 0.8)), row((0, 10)), 1 / 2, id="second is better"
        ),
        pytest.param(row((0, 8, A, 0.9), (0, 8, A, 0.8)), row((0, 10)), 1, id="twice the same"),
        pytest.param(row((0, 10)), row((0, 10), (0, 10)), 1 / 2, id="taken twice, one hit"),
    ],
)
def test_ap_of_an_image(predicted, truth, expected):
    assert image_ap(predicted, truth, iou=0.5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("iou", IOUS)
def test_iou_at_the_threshold_is_a_miss_as_published_and_a_hit_in_coco(iou):
    masks = np.arange(100) < np.array([[[round(100 * iou)]], [[100]]])
    one = np.ones(1, np.int64), np.ones(1, np.float32)
    predicted, truth = (Instances([mask], *one) for mask in encode(masks))
    assert image_ap(predicted, truth, iou=iou) == 0
    assert image_ap(predicted, truth, iou=iou - 0.05) == 1
    figures = detection.summary([predicted], [truth], classes=("a",))
    hits = IOUS.index(iou)
    assert figures["image_map"] == pytest.approx(hits / 10)
    assert figures["coco_map"] == pytest.approx((hits + 1) / 10)
    assert figures["image_ap50"] == (iou > 0.5)
    assert figures["image_ap75"] == (iou > 0.75)
    assert figures["coco_ap75"] == pytest.approx(float(iou >= 0.75))


def test_thresholds():
    assert IOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_images_are_averaged_as_published_and_pooled_by_coco():
    # One image right at 0.8, one wrong at 0.9: pooled, precision is 1/2 up to recall 1/2, which
    # are 51 of COCO's 101 recalls.
    figures = detection.summary(
        [row((0, 10, A, 0.8)), row((20, 30, A, 0.9))], [row((0, 10)), row((0, 10))], classes=("a",)
    )
    assert {key: figures[key] for key in ("image_ap50", "image_ap75", "image_map")} == {
        "image_ap50": 0.5,
        "image_ap75": 0.5,
        "image_map": 0.5,
    }
    for key in ("coco_ap50", "coco_ap75", "coco_map", "coco_ap50_a"):
        assert figures[key] == pytest.approx(51 / 101 / 2)
    assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        pytest.param(TWO, 1, id="perfect"),
        pytest.param(NONE, 0, id="nothing found"),
        pytest.param(row((0, 10)), 51 / 101, id="one of two"),
        pytest.param(row((0, 10, B), (20, 30, B)), 0, id="wrong class"),
        # Unlike the published rule, the better score takes the lesion.
        pytest.param(row((0, 8, A, 0.9), (0, 10, A, 0.8)), 51 / 101, id="twice"),
        pytest.param(
            row((0, 10, A, 0.9), (32, 40, A, 0.8), (20, 30, A, 0.7)),
            (51 + 50 * 2 / 3) / 101,
            id="HMH",
        ),
    ],
)
def test_coco_by_hand(predicted, expected):
    assert coco([predicted], [TWO])["coco_ap50"] == pytest.approx(expected)


def test_coco_averages_over_the_classes_of_the_truth():
    both = row((0, 10, A), (20, 30, B))
    figures = coco([row((0, 10, A))], [both])
    assert figures["coco_ap50"] == pytest.approx(0.5)
    assert (figures["coco_ap50_a"], figures["coco_ap50_b"]) == pytest.approx((1, 0))
    figures = coco([both], [row((0, 10, A))])
    assert (figures["coco_ap50"], figures["coco_map"]) == pytest.approx((1, 1))
    assert math.isnan(figures["coco_ap50_b"])


@pytest.mark.parametrize("predicted", [NONE, TWO])
def test_coco_without_any_truth_is_nan(predicted):
    assert all(math.isnan(value) for value in coco([predicted], [NONE]).values())
    figures = detection.summary([predicted, NONE], [NONE, NONE], classes=CLASSES)
    assert figures["image_ap50"] == (1 if predicted is NONE else 0.5)


def test_nothing_is_cut():
    false = [(20, 30, A, 0.9)] * 150
    assert coco([row(*false, (0, 10, A, 0.5))], [row((0, 10))])["coco_ap50"] == pytest.approx(
        1 / 151
    )


def test_nothing_is_printed(capfd):
    detection.summary([TWO], [TWO], classes=CLASSES)
    assert capfd.readouterr() == ("", "")


def test_arguments_stay_as_they_are_and_travel():
    predicted = row((0, 8, A, 0.8), (20, 30, B, 0.9))
    before = pickle.dumps(predicted)
    first = detection.summary([predicted], [TWO], classes=CLASSES)
    assert pickle.dumps(predicted) == before
    again = detection.summary([pickle.loads(before)], [TWO], classes=CLASSES)
    assert again == pytest.approx(first, abs=0, nan_ok=True)


def test_masks_of_another_size_are_our_mistake():
    other = Instances(encode(np.ones((1, 2, WIDTH), np.uint8)), TWO.labels_M[:1], TWO.scores_M[:1])
    with pytest.raises(AssertionError):
        image_ap(other, TWO, iou=0.5)
    with pytest.raises(AssertionError):
        Instances(TWO.masks, TWO.labels_M, TWO.scores_M[:1])
    with pytest.raises(AssertionError):
        detection.summary([TWO], [TWO, TWO], classes=CLASSES)
    with pytest.raises(AssertionError):
        detection.summary([row((0, 10, 3))], [TWO], classes=CLASSES)


# pycocotools 2.0.11 with numpy 2, in `decode` alone, which only this test uses.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_encoding_keeps_every_pixel(kind):
    masks = np.random.default_rng(0).integers(0, 2, (5, 7, 11)).astype(kind)
    masks[3] = 0
    encoded = encode(masks)
    assert [mask["size"] for mask in encoded] == [[7, 11]] * 5
    assert np.array_equal(rle.decode(encoded).transpose(2, 0, 1), masks)
    levels = np.random.default_rng(1).integers(1, 256, masks.shape).astype(np.uint8)
    assert encode(masks * levels) == encoded
    assert encode(masks[:0]) == []


# Against loops over dense masks, written from the rules and sharing no line with the module.


def random_images(seed, *, images=4):
    """Pairs of (masks, labels, scores): boxes on 8 x 8 px, predictions near the truth, or not."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        sides = []
        base = rng.integers(0, 5, (4, 2))
        for count in rng.integers(0, [7, 5]):
            masks = np.zeros((count, 8, 8), bool)
            for mask in masks:
                y, x = base[rng.integers(4)]
                height, width = rng.integers(2, 5, 2)
                mask[y : y + height, x : x + width] = rng.random() < 0.95  # or empty
            scores = rng.permutation(20)[:count] / 20 + 0.01
            sides.append((masks, rng.integers(1, 3, count), scores))
        pairs.append(sides)
    return pairs


def as_instances(masks, labels, scores):
    return Instances(encode(masks), labels.astype(np.int64), scores.astype(np.float32))


def dense_iou(one, other):
    union = int((one | other).sum())
    return Fraction(int((one & other).sum()), union) if union else Fraction(0)


def brute_image_ap(predicted, truth, *, hundredths):
    (masks, labels, scores), (true_masks, true_labels, _) = predicted, truth
    if not len(masks) and not len(true_masks):
        return Fraction(1)
    ranking = sorted(range(len(masks)), key=lambda i: -scores[i])
    hits = set()
    for true_mask, true_label in zip(true_masks, true_labels, strict=True):
        best, winner = Fraction(hundredths, 100), None
        for i in ranking:
            if labels[i] == true_label and dense_iou(masks[i], true_mask) > best:
                best, winner = dense_iou(masks[i], true_mask), i
        hits |= {winner} - {None}
    points = []  # recall and precision after each prediction
    for n in range(1, len(ranking) + 1):
        right = len(hits & set(ranking[:n]))
        points.append((Fraction(right, max(1, len(true_masks))), Fraction(right, n)))
    area, reached = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - reached) * max(precision for r, precision in points if r >= recall)
        reached = recall
    return area


def brute_coco_ap(pairs, *, label, hundredths):
    there, outcomes = 0, []
    for predicted, truth in pairs:
        mine = [i for i in range(len(predicted[0])) if predicted[1][i] == label]
        free = [j for j in range(len(truth[0])) if truth[1][j] == label]
        there += len(free)
        for i in sorted(mine, key=lambda i: -predicted[2][i]):
            overlap, j = max(
                ((dense_iou(predicted[0][i], truth[0][j]), j) for j in free),
                default=(Fraction(0), -1),
            )
            hit = overlap >= Fraction(hundredths, 100)
            if hit:
                free.remove(j)
            outcomes.append((predicted[2][i], hit))
    if not there:
        return None
    outcomes.sort(key=lambda outcome: -outcome[0])  # stable, by image among equals
    points, right = [], 0
    for n, (_, hit) in enumerate(outcomes, 1):
        right += hit
        points.append((right / there, right / n))
    return np.mean(
        [max((p for r, p in points if r >= at), default=0) for at in np.linspace(0, 1, 101)]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_against_brute_force(seed):
    pairs = random_images(seed)
    predicted = [as_instances(*one) for one, _ in pairs]
    truth = [as_instances(*one) for _, one in pairs]
    figures = detection.summary(predicted, truth, classes=CLASSES)

    by_iou = []
    for iou in IOUS:
        expected = [brute_image_ap(*pair, hundredths=round(100 * iou)) for pair in pairs]
        got = [image_ap(*pair, iou=iou) for pair in zip(predicted, truth, strict=True)]
        assert got == pytest.approx([float(value) for value in expected], abs=1e-12)
        by_iou.append(float(sum(expected) / len(expected)))
    assert figures["image_ap50"] == pytest.approx(by_iou[0])
    assert figures["image_ap75"] == pytest.approx(by_iou[5])
    assert figures["image_map"] == pytest.approx(np.mean(by_iou))

    tables = [
        [brute_coco_ap(pairs, label=label, hundredths=round(100 * iou)) for label in (A, B)]
        for iou in IOUS
    ]
    means = [np.mean([ap for ap in table if ap is not None] or [np.nan]) for table in tables]
    assert figures["coco_ap50"] == pytest.approx(means[0], nan_ok=True)
    assert figures["coco_ap75"] == pytest.approx(means[5], nan_ok=True)
    assert figures["coco_map"] == pytest.approx(np.mean(means), nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(4)))
def test_order_does_not_matter_and_values_are_shares(seed, order):
    pairs = [[as_instances(*one) for one in pair] for pair in random_images(seed)]
    # Scores of two images may tie; what COCO's pool does with that depends on the order of images.
    for number, (predicted, _) in enumerate(pairs):
        predicted.scores_M[:] += number / 1000
    figures = detection.summary(*zip(*pairs, strict=True), classes=CLASSES)
    mixed = detection.summary(*zip(*(pairs[i] for i in order), strict=True), classes=CLASSES)
    assert mixed == pytest.approx(figures, nan_ok=True)
    assert all(math.isnan(value) or -1e-9 <= value <= 1 + 1e-9 for value in figures.values())
    # The order within an image neither, where no score comes twice.
    turned = [
        Instances(predicted.masks[::-1], predicted.labels_M[::-1], predicted.scores_M[::-1])
        for predicted, _ in pairs
    ]
    truth = [one for _, one in pairs]
    assert detection.summary(turned, truth, classes=CLASSES) == pytest.approx(figures, nan_ok=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_truth_itself_is_perfect(seed):
    truth = []
    for _, (masks, labels, scores) in random_images(seed):
        # Lesions are connected components: no two share a pixel, none is empty.
        alone = masks & (np.cumsum(masks, axis=0) == 1)
        keep = alone.any(axis=(1, 2))
        truth.append(as_instances(alone[keep], labels[keep], scores[keep]))
    figures = detection.summary(truth, truth, classes=CLASSES)
    assert figures["image_map"] == 1
    assert all(math.isnan(value) or value == pytest.approx(1) for value in figures.values())
