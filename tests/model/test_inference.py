"""The prediction of a slice depends only on its pixels, and networks train as intended."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cctmn.errors import ModelError
from cctmn.model.checkpoint import fresh
from cctmn.model.classifier import Classifier
from cctmn.model.inference import Predictor, normalise_and_pad
from cctmn.model.roi_align import RoiAlign
from tests.model.conftest import EVERY, arch, classifier_arch, made_up, same


@pytest.mark.parametrize(("backbone", "truncation"), EVERY)
def test_batch_and_order_do_not_matter(backbone, truncation):
    net = fresh(classifier_arch(backbone, truncation), seed=1)
    slices = made_up(8, size=(32, 32))
    alone = [Predictor(net).predict([pixels])[0] for pixels in slices]
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    threes = Predictor(net).predict(slices[:3])
    eights = Predictor(net).predict([slices[i] for i in order])
    assert all(map(same, alone[:3], threes))
    assert all(map(same, (alone[i] for i in order), eights))


def test_any_size_is_padded_and_boxes_stay_inside():
    net = fresh(arch(masks=True), seed=2)
    sizes = [(70, 45), (33, 96), (1, 1)]
    slices = [made_up(1, size=size)[0] for size in sizes]
    for (height, width), prediction in zip(sizes, Predictor(net).predict(slices), strict=True):
        assert (prediction.boxes_M4 >= 0).all()
        assert (prediction.boxes_M4 <= [width, height, width, height]).all()
        assert prediction.mask_px_M.shape == prediction.scores_M.shape
        assert (prediction.mask_px_M <= height * width).all()
        assert (np.diff(prediction.scores_M) <= 0).all()


def test_tensors_read_only_and_flipped_arrays_are_taken():
    net = fresh(classifier_arch(), seed=1)
    (pixels,) = made_up(1)
    fixed = pixels.copy()
    fixed.flags.writeable = False
    flipped = pixels[::-1].copy()[::-1]
    predictions = Predictor(net).predict([pixels, torch.from_numpy(pixels), fixed, flipped])
    assert all(same(predictions[0], one) for one in predictions)


def test_a_higher_nms_threshold_reports_more_lesions_and_leaves_the_class_alone():
    net = fresh(classifier_arch(), seed=1)
    (pixels,) = made_up(1, size=(32, 32))
    few, usual, many = (
        Predictor(net, lesion_nms_iou=iou).predict([pixels])[0] for iou in (0.25, 0.5, 0.75)
    )
    assert len(few.scores_M) < len(usual.scores_M) < len(many.scores_M)
    assert same(usual, Predictor(net).predict([pixels])[0])
    for one in (few, many):
        np.testing.assert_array_equal(one.logits_C, usual.logits_C)
        np.testing.assert_array_equal(one.ranked_boxes_N4, usual.ranked_boxes_N4)


def test_detector_inside_the_classifier_reports_the_detectors_lesions():
    net = fresh(classifier_arch(), seed=1)
    for pixels in made_up(2):
        (both,), (lesions,) = (
            Predictor(net).predict([pixels]),
            Predictor(net.detector).predict([pixels]),
        )
        assert len(both.scores_M) > 0
        np.testing.assert_array_equal(both.boxes_M4, lesions.boxes_M4)
        np.testing.assert_array_equal(both.scores_M, lesions.scores_M)


def test_areas_and_mask_logits_are_computed_only_on_request():
    predictor = Predictor(fresh(arch(masks=True), seed=2))
    slices = made_up(1)
    (neither,), (both,) = (
        predictor.predict(slices, areas=False),
        predictor.predict(slices, masks=True),
    )
    assert neither.mask_px_M is None
    assert neither.mask_logits_M1SS is None
    assert both.mask_logits_M1SS.shape == (len(both.scores_M), 1, 28, 28)
    assert len(both.mask_px_M) == len(both.scores_M) > 0
    (default,) = predictor.predict(slices)
    assert default.mask_logits_M1SS is None
    np.testing.assert_array_equal(default.mask_px_M, both.mask_px_M)


def test_roi_align_can_be_replaced():
    calls = []

    def counted(arch, cells):
        calls.append(cells)
        return RoiAlign(arch, cells)

    Classifier(classifier_arch(masks=True), roi_align=counted)
    assert sorted(calls) == [7, 14]


def test_no_slices_no_predictions():
    assert Predictor(fresh(classifier_arch(), seed=1)).predict([]) == []


def test_values_that_are_not_finite_are_refused():
    net = fresh(classifier_arch(), seed=1)
    with torch.no_grad():
        net.module_s[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Predictor(net).predict(made_up(1))


def test_training_step_of_the_detector_has_five_losses():
    torch.manual_seed(0)
    net = fresh(arch(masks=True), seed=2).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    box = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": masks}
    losses = net(torch.rand(1, 3, 64, 64), sizes=[(64, 64)], targets=[target])
    assert len(losses) == 5
    sum(losses.values()).backward()
    assert net.backbone.body.conv1.weight.grad.abs().sum() > 0


def test_training_step_of_the_classifier_reaches_the_backbone_and_keeps_batch_norm():
    net = fresh(classifier_arch(), seed=2).train()
    assert net.training
    assert not net.detector.training
    before = net.detector.backbone.body.bn1.running_mean.clone()
    x = torch.stack([normalise_and_pad(p, device=torch.device("cpu"))[0] for p in made_up(2)])
    net(x, sizes=[(96, 96)] * 2).sum().backward()
    assert torch.equal(before, net.detector.backbone.body.bn1.running_mean)
    assert net.detector.backbone.body.conv1.weight.grad.abs().sum() > 0
