"""The paper's settings, number by number against the tables of method.md, as the nets have them.

The numbers stand here once more, so that no constant can be changed unseen. What a net does is read
from the parts it is built of, so that one wired to the wrong place is seen too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cctmn import config
from cctmn.classes import LESION_MODES
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.contract import InputContract
from cctmn.errors import ConfigError, ModelError
from cctmn.model import constants, inference, ranking
from cctmn.model.checkpoint import LoadedModel, classifier_from_detector
from cctmn.model.classifier import Classifier
from cctmn.train import initial

STAGES = {"detector": DetectorConfig, "classifier": ClassifierConfig}

# Stage 1, row "training"
ADAM = {"lr": 1e-5, "weight_decay": 1e-3, "schedule": "constant", "warmup": 0, "clip_norm": 0.0}
DETECTOR = {
    "variant": "full",
    "init": "imagenet",
    "optim": {"epochs": 100, "batch_size": 1, "steps": 0, **ADAM},
}
# Stage 2, rows "classes", "loss", "variants", "training"
CLASSIFIER = {
    "variant": "s+bn",
    "loss": "bce",
    "ranked": 0,
    "hidden": 0,
    "masks": False,
    "optim": {"epochs": 50, "batch_size": 8, "steps": 0, **ADAM},
}
COVIDX, ICTCF = ("control", "pneumonia", "covid"), ("control", "covid")
PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("detector", "paper-resnet50"): {
        **DETECTOR,
        "backbone": "resnet50",
        "truncation": 0,
        "lesions": "both",
    },
    # rows "backbones" and "published AP": the published lightweight nets are truncated by one
    ("detector", "paper-resnet34-t1"): {
        **DETECTOR,
        "backbone": "resnet34",
        "truncation": 1,
        "lesions": "merge",
    },
    ("detector", "paper-resnet18-t1"): {
        **DETECTOR,
        "backbone": "resnet18",
        "truncation": 1,
        "lesions": "merge",
    },
    ("classifier", "paper"): {**CLASSIFIER, "classes": COVIDX},
    # Data sets: iCTCF has two classes, and 10 epochs
    ("classifier", "paper-ictcf"): {
        **CLASSIFIER,
        "classes": ICTCF,
        "optim": {**CLASSIFIER["optim"], "epochs": 10},
    },
}


def preset(stage: str, name: str, *sets: str) -> Any:
    return config.load(STAGES[stage], files=[config.presets(stage)[name]], sets=sets)


def settings(loaded: Any) -> dict[str, Any]:
    """Without what the paper says nothing of."""
    values = asdict(loaded)
    validation = ("valid_fraction", "validate_every", "validate_slices")
    for ours in ("hardware", "half", "cached", "note", *validation):
        values.pop(ours, None)
    del values["optim"]["seed"]
    return values


@pytest.mark.parametrize(("stage", "name"), PAPER)
def test_presets_are_the_papers(stage, name):
    assert settings(preset(stage, name)) == PAPER[stage, name]


def test_defaults_are_the_papers():
    assert settings(DetectorConfig()) == PAPER["detector", "paper-resnet50"]
    assert settings(ClassifierConfig()) == PAPER["classifier", "paper"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_can_be_loaded(stage):
    names = config.presets(stage)
    assert {name for of, name in PAPER if of == stage} | {"demo"} <= names.keys()
    for name in names:
        preset(stage, name)


@pytest.mark.parametrize("text", ["backbon = 'resnet18'", "[optim]\nlearning_rate = 1.0", "lr = 1"])
def test_an_unknown_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match="no such setting"):
        config.load(DetectorConfig, files=[tmp_path / "mine.toml"])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("backbone=resnet101", "is unknown; allowed: "),
        ("truncation=-1", "below 0"),
        ("optim.schedule=step", "is unknown; allowed: "),
        ("optim.epochs=0", "below 1"),
        ("optim.batch_size=0", "below 1"),
        ("variant=s", "is unknown; allowed: "),
        ("hardware.precision=float16", "is unknown; allowed: "),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        preset("detector", "paper-resnet50", sets)


# --- the nets

# backbone, truncation, layers of the pyramid, widths of the trunk, mask head, N, F
NETS: list[tuple[str, int, list[str], list[int], list[int], int, int]] = [
    ("resnet18", 0, ["layer4"], [512], [128], 128, 512),
    ("resnet18", 1, ["layer3"], [256], [128], 128, 512),
    ("resnet18", 2, ["layer2"], [128], [128], 128, 512),
    ("resnet34", 0, ["layer4"], [512], [128], 128, 512),
    ("resnet34", 1, ["layer3"], [256], [128], 128, 512),
    ("resnet34", 2, ["layer2"], [128], [128], 128, 512),
    (
        "resnet50",
        0,
        ["layer1", "layer2", "layer3", "layer4"],
        [256, 512, 1024, 2048],
        [256] * 4,
        256,
        1024,
    ),
]


@pytest.fixture(scope="module", params=NETS, ids=lambda net: f"{net[0]}-t{net[1]}")
def built(request: pytest.FixtureRequest) -> tuple[tuple[Any, ...], LoadedModel]:
    """A detector of a preset, with its backbone and truncation by --set."""
    backbone, truncation, *_ = request.param
    sets = (f"backbone={backbone}", f"truncation={truncation}", "init=none")
    return request.param, initial.detector(
        preset("detector", "paper-resnet34-t1", *sets), model=None
    )


def test_backbone_layers(built):
    """Stage 1, rows "backbones" and "batch norm"."""
    (_, _, layers, widths, *_), model = built
    body, fpn = model.net.backbone.body, model.net.backbone.fpn
    assert body.return_layers == {name: str(i) for i, name in enumerate(layers)}
    assert list(body)[-1] == layers[-1]  # what comes after is dropped
    assert [block[0].in_channels for block in fpn.inner_blocks] == widths
    assert [block[0].out_channels for block in fpn.layer_blocks] == [256] * len(layers)
    assert fpn.extra_blocks is None
    norms = [module for module in model.net.modules() if "BatchNorm" in type(module).__name__]
    assert len(norms) > 5
    for norm in norms:
        assert type(norm) is nn.BatchNorm2d
        assert (norm.eps, norm.momentum, norm.track_running_stats) == (1e-5, 0.1, True)
        assert norm.weight.requires_grad


def test_anchors_and_rpn(built):
    """Stage 1, rows "anchors" and "RPN"."""
    (_, _, layers, *_), model = built
    rpn = model.net.rpn
    generator: AnchorGenerator = rpn.anchor_generator
    assert generator.sizes == ((2, 4, 8, 16, 32),) * len(layers)
    assert generator.aspect_ratios == ((0.1, 0.25, 0.5, 1.0, 1.5, 2.0),) * len(layers)
    assert generator.num_anchors_per_location() == [30] * len(layers)
    assert (rpn.head.cls_logits.out_channels, rpn.head.bbox_pred.out_channels) == (30, 120)
    matcher, sampler = rpn.proposal_matcher, rpn.fg_bg_sampler
    assert (matcher.high_threshold, matcher.low_threshold) == (0.7, 0.3)
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (256, 0.75)
    assert rpn.nms_thresh == 0.75
    rpn.train()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (2000, 2000)
    rpn.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)


def test_roi_heads(built):
    """Stage 1, rows "RoI", "mask head", "classes" and "test"."""
    (_, _, layers, _, mask_layers, *_), model = built
    heads = model.net.roi_heads
    for pool, cells in ((heads.box_roi_pool, 7), (heads.mask_roi_pool, 14)):
        assert (pool.output_size, pool.sampling_ratio) == ((cells, cells), 2)
        assert pool.featmap_names == [str(i) for i in range(len(layers))]
        assert pool.scales == [1 / 2 ** (int(layer[-1]) + 1) for layer in layers]
    assert (heads.box_head.fc6.in_features, heads.box_head.fc6.out_features) == (256 * 49, 128)
    assert (heads.box_head.fc7.in_features, heads.box_head.fc7.out_features) == (128, 128)
    matcher, sampler = heads.proposal_matcher, heads.fg_bg_sampler
    assert (matcher.high_threshold, matcher.low_threshold) == (0.75, 0.5)
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (256, 0.75)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    convs = [block[0] for block in heads.mask_head]
    assert [conv.in_channels for conv in convs] == [256, *mask_layers[:-1]]
    assert [conv.out_channels for conv in convs] == mask_layers
    assert heads.mask_predictor.conv5_mask.out_channels == mask_layers[-1]
    assert heads.mask_predictor.conv5_mask.stride == (2, 2)  # 14 to 28
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 128)


def test_classifier(built):
    """Stage 2, rows "detections", "features" and "S"; weights of the detector are copied."""
    (*_, ranked, hidden), model = built
    made = classifier_from_detector(model, seed=0)
    net = made.net
    assert isinstance(net, Classifier)
    assert (net.arch.ranked, net.arch.hidden) == (ranked, hidden)
    sizes = [(m.in_features, m.out_features) for m in net.module_s if isinstance(m, nn.Linear)]
    assert sizes == [(5 * ranked, hidden), (hidden, hidden), (hidden, 3)]
    assert [type(m) for m in net.module_s] == [nn.Linear, nn.ReLU] * 2 + [nn.Linear]
    parameters = sum(weight.numel() for weight in net.module_s.parameters())
    assert parameters / 1e6 == pytest.approx({1024: 2.36, 512: 0.59}[hidden], abs=0.005)
    assert net.detector.roi_heads.mask_head is None
    assert net.arch.image_classes == COVIDX
    here, there = net.detector.state_dict(), model.net.state_dict()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert net.detector.rpn.nms_thresh == 0.75
    assert (constants.RANKED_NMS_IOU, constants.RANKED_MIN_SCORE) == (0.75, -0.01)


@pytest.mark.parametrize(("truncation", "backbone"), [(1, "resnet50"), (3, "resnet18")])
def test_what_the_method_does_not_have_is_refused(backbone, truncation):
    sets = (f"backbone={backbone}", f"truncation={truncation}", "init=none")
    with pytest.raises(ModelError, match="truncation"):
        initial.detector(preset("detector", "paper-resnet50", *sets), model=None)


@pytest.mark.parametrize(
    ("mode", "classes"),
    [("both", ("ggo", "consolidation")), ("ggo", ("ggo",)), ("merge", ("lesion",))],
)
def test_lesion_classes(mode, classes):
    """Stage 1, row "classes": with background they are three or two."""
    sets = ("truncation=2", "init=none", f"lesions={mode}")
    model = initial.detector(preset("detector", "paper-resnet18-t1", *sets), model=None)
    assert model.card.arch.lesion_classes == classes == LESION_MODES[mode]
    heads = model.net.roi_heads
    assert heads.box_predictor.cls_score.out_features == len(classes) + 1
    assert heads.box_predictor.bbox_pred.out_features == 4 * (len(classes) + 1)
    assert heads.mask_predictor.mask_fcn_logits.out_channels == len(classes) + 1


def test_input(built):
    """Stage 1, row "input"."""
    _, model = built
    contract = InputContract.from_card(model.card.input)
    assert (contract.size_px, contract.max_size_px) == (512, 1024)
    grey = np.full((64, 64), 51, np.uint8)
    x_3HW, _ = inference.normalise_and_pad(grey, device=torch.device("cpu"))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(x_3HW[:, 5, 5], (0.2 - mean) / std, rtol=1e-5)


def test_rule_of_reported_lesions():
    """Stage 1, row "test": NMS 0.5, score above 0.05, at most 128, mask above 0.5."""
    far = torch.arange(200.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    near = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.1], [0.0, 0.0, 10.0, 4.9]])
    assert len(ranking.lesions(candidates(far, scores=[0.9] * 200))[0]) == 128
    assert len(ranking.lesions(candidates(near, scores=[0.9, 0.8, 0.7]))[0]) == 2
    scores = ranking.lesions(candidates(far[:3], scores=[0.06, 0.05, 0.051]))[1]
    assert scores.tolist() == pytest.approx([0.06, 0.051])
    assert constants.MASK_LOGIT == 0.5


def test_input_of_module_s():
    """Stage 2, row "detections": NMS 0.75, every score, the best N."""
    near = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 7.6], [0.0, 0.0, 10.0, 7.4]])
    chosen = ranking.choose(candidates(near, scores=[0.9, 0.8, 0.0]), count=2)
    assert chosen.tolist() == [0, 2]


def candidates(boxes_R4: torch.Tensor, *, scores: list[float]) -> ranking.Candidates:
    count = len(boxes_R4)
    labels = torch.ones(count, dtype=torch.int64)
    return ranking.Candidates(
        torch.tensor(scores), labels, boxes_R4, torch.zeros(count, 4), torch.arange(count), 1
    )
