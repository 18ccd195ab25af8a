"""Ranked boxes and lesions chosen from candidates, on small hand-made numbers."""

from __future__ import annotations

import torch

from cctmn.model import ranking


def candidates(scores, boxes=None, labels=None):
    count = len(scores)
    if boxes is None:  # far apart, so that NMS keeps all
        boxes = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(count)]
    return ranking.Candidates(
        torch.tensor(scores),
        torch.tensor(labels or [1] * count),
        torch.tensor(boxes).reshape(-1, 4),
        torch.arange(4.0 * count).reshape(-1, 4),
        torch.arange(count),
        2,
    )


def ranked(candidates, *, count):
    """The input of module S, and the boxes that it describes."""
    keep = ranking.choose(candidates, count=count)
    features = ranking.ranked_features(
        candidates.scores_R[keep], deltas_N4=candidates.deltas_R4[keep], count=count
    )
    return features, ranking.pad_rows(candidates.boxes_R4[keep], count=count)


def test_features_are_score_then_deltas_by_falling_score():
    features, boxes = ranked(candidates([0.1, 0.9, 0.5]), count=2)
    assert features.tolist() == [[torch.tensor(0.9).item(), 4, 5, 6, 7], [0.5, 8, 9, 10, 11]]
    assert boxes[:, 0].tolist() == [20, 40]


def test_too_few_boxes_are_repeated_evenly_in_order():
    _, boxes = ranked(candidates([0.2, 0.9, 0.5]), count=7)
    assert boxes[:, 0].tolist() == [20, 20, 20, 40, 40, 0, 0]


def test_no_box_gives_zeros():
    features, boxes = ranked(candidates([]), count=3)
    assert features.shape == (3, 5)
    assert boxes.shape == (3, 4)
    assert not features.any()
    assert [len(part) for part in ranking.lesions(candidates([]))] == [0, 0, 0]


def test_ties_keep_their_order():
    scores = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 1.0])
    assert ranking.top(scores, count=2).tolist() == [1, 2]
    assert ranking.top(scores, count=4).tolist() == [1, 2, 4, 0]
    assert ranking.top(scores, count=9).tolist() == [1, 2, 4, 0, 5, 3]
    _, boxes = ranked(candidates([0.5] * 5, labels=[2, 1, 2, 1, 1]), count=5)
    assert boxes[:, 0].tolist() == [0, 20, 40, 60, 80]


def test_nms_is_per_class_and_by_threshold():
    # IoU of the pair is 0.6: below 0.75, above 0.5.
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]]
    pair = candidates([0.9, 0.8], boxes)
    assert len(ranking.lesions(pair)[0]) == 1
    assert len(ranked(pair, count=2)[1].unique(dim=0)) == 2
    assert len(ranking.lesions(candidates([0.9, 0.8], boxes, [1, 2]))[0]) == 2


def test_the_nms_threshold_decides_which_overlapping_lesions_stay():
    # The second box overlaps the first by 0.6, the third by a third.
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0], [0.0, 5.0, 10.0, 15.0]]
    for nms_iou, kept in ((0.25, 1), (0.5, 2), (0.75, 3), (1.0, 3)):
        chosen = ranking.lesions(candidates([0.9, 0.8, 0.7], boxes, [1, 1, 1]), nms_iou=nms_iou)
        assert len(chosen[1]) == kept


def test_lesions_exceed_the_minimum_score_and_are_limited_in_number():
    assert len(ranking.lesions(candidates([0.05, 0.051]))[1]) == 1
    assert len(ranking.lesions(candidates([0.9] * 200))[1]) == 128


def test_boxes_without_area_are_dropped_and_thin_ones_kept():
    proposals = torch.tensor(
        [[5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 5.0001, 9.0], [90.0, 5.0, 95.0, 9.0]]
    )
    kept = ranking.candidates(
        torch.zeros(3, 2),
        deltas_P4K=torch.zeros(3, 8),
        proposals_P4=proposals,
        size_px=(64, 64),  # the last lies outside
    )
    assert len(kept.scores_R) == 1
