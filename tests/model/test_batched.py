"""True batches give the predictions of slices run one by one, with little work per slice.

There is no GPU here. A pretended one counts kernels and waits, and torch's fake CUDA tensors show
that nothing is made on the wrong device.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from cctmn.errors import ModelError
from cctmn.model import batched, batched_ranking, inference, roi_align
from cctmn.model.batched_ranking import nms_in_groups
from cctmn.model.checkpoint import fresh, load
from cctmn.model.classifier import Classifier
from cctmn.model.inference import Predictor
from tests.model.conftest import classifier_arch, made_up
from tests.model.pretend_gpu import PretendGpu, moved


@pytest.fixture(scope="module")
def demo():
    """The trained demo model: its scores differ, so that rounding does not reorder boxes."""
    return load("cctmn:demo").net


def slices_of_two_shapes():
    """Five slices of different content and sizes, which are padded to two shapes."""
    sizes = [(96, 96), (128, 90), (96, 96), (81, 70), (128, 96)]
    return [made_up(1, size=size, seed=i)[0] for i, size in enumerate(sizes)]


def assert_alike(expected, actual):
    for name in expected.__dataclass_fields__:
        one, other = getattr(expected, name), getattr(actual, name)
        assert (one is None) == (other is None), name
        if name in ("labels_M", "mask_px_M"):
            np.testing.assert_array_equal(one, other, err_msg=name)
        elif one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_gives_the_predictions_of_its_slices(demo, masks):
    slices = slices_of_two_shapes()
    expected = Predictor(demo, true_batches=False).predict(slices, areas=masks, masks=masks)
    together = Predictor(demo, true_batches=True)
    assert sum(len(one.scores_M) for one in expected) > 5
    actual = together.predict(slices, areas=masks, masks=masks)
    order = [3, 0, 4, 2, 1]
    shuffled = together.predict([slices[i] for i in order], areas=masks, masks=masks)
    alone = [together.predict([pixels], areas=masks, masks=masks)[0] for pixels in slices]
    for i, one in enumerate(expected):
        for other in (actual[i], shuffled[order.index(i)], alone[i]):
            assert_alike(one, other)


@pytest.mark.slow
def test_a_batch_of_several_pyramid_levels_gives_the_predictions_of_its_slices():
    net = fresh(classifier_arch("resnet50", 0, masks=True), seed=1)
    with torch.no_grad():  # scores that differ
        net.detector.rpn.head.cls_logits.weight.mul_(100)
        net.detector.roi_heads.box_predictor.cls_score.weight.mul_(100)
    slices = made_up(2, size=(64, 64))
    expected = Predictor(net).predict(slices)
    for one, other in zip(expected, Predictor(net, true_batches=True).predict(slices), strict=True):
        np.testing.assert_allclose(one.logits_C, other.logits_C, rtol=1e-4, atol=1e-4)


def test_blank_slices_that_fill_a_batch_up_change_nothing(demo, monkeypatch):
    slices = made_up(3)
    usual = Predictor(demo, true_batches=True)
    filled = Predictor(demo, true_batches=True)
    monkeypatch.setattr(filled._batched, "_num_filled", lambda count: 4)
    for one, other in zip(usual.predict(slices), filled.predict(slices), strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("true_batches", [False, True])
def test_an_autocast_of_the_caller_changes_nothing(demo, true_batches):
    predictor = Predictor(demo, true_batches=true_batches)
    slices = made_up(2)
    expected = predictor.predict(slices)
    with torch.autocast("cpu", torch.bfloat16):
        actual = predictor.predict(slices)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one.logits_C, other.logits_C)


def test_bfloat16_runs_in_batches(demo):
    predictor = Predictor(demo, precision="bfloat16", true_batches=True)
    (one,) = predictor.predict(made_up(1))
    assert one.logits_C.dtype == np.float32
    assert np.isfinite(one.logits_C).all()


@pytest.mark.parametrize("where", ["rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"])
def test_a_batch_of_values_that_are_not_finite_is_refused(demo, where):
    net = copy.deepcopy(demo)
    with torch.no_grad():
        net.detector.get_submodule(where).weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Predictor(net, true_batches=True).predict(made_up(2))


def test_nms_compares_boxes_of_one_slice_and_group_alone(monkeypatch):
    box, inner, empty = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [5.0, 5.0, 5.0, 9.0]
    boxes = torch.tensor([[box, inner, box, empty], [inner, box, empty, inner]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.5, 0.6, 0.7, 0.8]])
    for at_once in (2, 100):  # in two calls, and in one
        monkeypatch.setattr(batched_ranking, "NMS_BOXES", at_once)
        kept = nms_in_groups(
            boxes,
            scores_BX=scores,
            groups_X=torch.tensor([0, 0, 1, 1]),
            num_groups=2,
            span_px=11,
            iou=0.5,
        )
        assert kept.tolist() == [[True, False, True, True], [False, True, True, True]]


@pytest.mark.slow
@pytest.mark.parametrize(("masks", "waits"), [(False, 6), (True, 7)])
def test_a_gpu_gets_few_kernels_and_is_rarely_waited_for(demo, monkeypatch, masks, waits):
    gpu = PretendGpu()
    for module in (batched, batched_ranking, roi_align):
        monkeypatch.setattr(module, "host_waits", gpu.host_waits)
    net = copy.deepcopy(demo)
    with gpu.entered():
        moved(net)
        predictor = Predictor(net)
        slices = made_up(16, size=(64, 64))
        predictor.predict(slices[:1], areas=masks)  # makes the anchors
        gpu.reset()
        predictions = predictor.predict(slices, areas=masks)
    assert gpu.kernels.total() <= 16 * 16, gpu.kernels
    assert gpu.waits.total() <= waits, gpu.waits
    assert not gpu.forbidden_waits
    assert (gpu.uploads, gpu.downloads) == (1, 1)
    expected = Predictor(demo).predict(slices, areas=masks)
    differences = [
        np.abs(one.logits_C - other.logits_C).max()
        for one, other in zip(expected, predictions, strict=True)
    ]
    # Rounding swaps boxes of nearly equal scores in some of these slices.
    assert np.median(differences) < 1e-4


@pytest.mark.slow
def test_the_work_of_a_gpu_does_not_depend_on_the_number_of_lesions(demo, monkeypatch):
    for module in (batched, batched_ranking, roi_align):
        monkeypatch.setattr(module, "host_waits", (gpu := PretendGpu()).host_waits)
    net = copy.deepcopy(demo)
    totals, lesions = [], []
    with gpu.entered():
        moved(net)
        for iou in (0.1, 0.9):
            predictor = Predictor(net, lesion_nms_iou=iou)
            slices = made_up(2, size=(64, 64))
            predictor.predict(slices)
            gpu.reset()
            lesions.append(sum(len(one.scores_M) for one in predictor.predict(slices)))
            totals.append((gpu.kernels.total(), gpu.waits.total()))
    assert lesions[0] < lesions[1]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("backbone", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_every_tensor_of_a_batch_is_made_on_the_gpu(backbone, masks):
    """Fake tensors have shapes and devices alone; the first value that is read ends the batch."""
    truncation = 0 if backbone == "resnet50" else 1
    warnings.filterwarnings("ignore", message=".*create_unbacked_symint")  # of torchvision
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True):
        with torch.device("cuda"):
            net = Classifier(classifier_arch(backbone, truncation, masks=True)).eval()
        with pytest.MonkeyPatch.context() as patch:
            # Fake weights cannot be given another memory layout or type.
            patch.setattr(torch.nn.Module, "to", lambda module, **_: module)
            patch.setattr(inference, "folded", lambda detector: detector)
            predictor = Predictor(net)
        images = [torch.zeros(64, 60, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.uint8)]
        assert predictor._batched is not None
        results = []
        with pytest.MonkeyPatch.context() as patch:

            def download(parts, mask_logits, **_):
                results.extend(parts.values())
                results.extend([] if mask_logits is None else [mask_logits])
                return []

            patch.setattr(batched, "_download", download)
            # The one value that the host reads is the largest number of lesions.
            patch.setattr(batched, "int", lambda _: 3, raising=False)
            predictor._batched.predict(images, shape=(64, 64), masks=masks)
    assert {str(part.device) for part in results} == {"cuda:0"}
    assert any(part.ndim == 5 for part in results) == masks  # B x M x 1 x S x S
