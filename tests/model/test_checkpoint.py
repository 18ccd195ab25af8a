"""Model folders: what is saved comes back bit for bit, and what was altered is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cctmn.errors import ModelError
from cctmn.model import checkpoint
from cctmn.model.card import Arch, Card, lesion_rule, parse_card, read_card
from cctmn.model.checkpoint import LoadedModel, fresh
from cctmn.model.inference import Predictor
from tests.conftest import S3Server
from tests.model.conftest import BOTH, COVIDX, EVERY, arch, classifier_arch, made_up, same


def some_card(of: Arch) -> Card:
    return Card("made up", of, trained=False)


def kinds(backbone, truncation):
    if (backbone, truncation) == ("resnet18", 1):  # elsewhere the one with masks holds it too
        yield arch(backbone, truncation)
    yield arch(backbone, truncation, masks=True, lesion_classes=("lesion",))
    yield classifier_arch(backbone, truncation)


@pytest.mark.parametrize(("backbone", "truncation"), EVERY)
def test_round_trip_is_bit_identical(tmp_path, backbone, truncation):
    slices = made_up(1, size=(32, 32))
    for i, of in enumerate(kinds(backbone, truncation)):
        net = fresh(of, seed=3)
        card = checkpoint.save(net, tmp_path / str(i), card=some_card(of))
        loaded = checkpoint.load(tmp_path / str(i))
        assert loaded.card == card == read_card(tmp_path / str(i))
        assert same(Predictor(net).predict(slices)[0], Predictor(loaded.net).predict(slices)[0])


def test_fresh_is_the_seeds_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    one, two, other = (fresh(arch(), seed=s).state_dict() for s in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    net = fresh(arch(), seed=3)
    for folder in ("a", "b"):
        checkpoint.save(net, tmp_path / folder, card=some_card(net.arch))
    for name in ("card.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "card.json",
        "weights.safetensors",
    ]


@pytest.fixture(scope="module")
def saved():
    net = fresh(arch(), seed=3)
    return checkpoint.to_bytes(net, card=some_card(net.arch))


def put(folder, saved):
    (folder / "card.json").write_bytes(saved[0])
    (folder / "weights.safetensors").write_bytes(saved[1])
    return folder


def test_altered_weights_are_refused(tmp_path, saved):
    put(tmp_path, saved)
    checkpoint.load(tmp_path)
    weights = bytearray(saved[1])
    weights[-3] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="sha256"):
        checkpoint.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(weights[:-1])
    with pytest.raises(ModelError, match="bytes, the card says"):
        checkpoint.load(tmp_path)


def test_a_model_may_live_on_s3(s3: S3Server, tmp_path):
    s3.bucket("models")
    net = fresh(arch(), seed=3)
    card = checkpoint.save(net, "s3://models/deep/m", card=some_card(net.arch))
    loaded = checkpoint.load("s3://models/deep/m")
    assert loaded.card == card
    slices = made_up(1, size=(32, 32))
    assert same(Predictor(net).predict(slices)[0], Predictor(loaded.net).predict(slices)[0])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"card\.json not found"):
        checkpoint.load(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = fresh(arch(), seed=3)
    with torch.no_grad():
        net.backbone.body.conv1.weight[0, 0, 0, 0] = float("inf")
    checkpoint.save(net, tmp_path, card=some_card(net.arch))
    with pytest.raises(ModelError, match="not finite"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"surprise": 1}, "surprise"),
        ({"arch": {}}, "missing"),
        ({"trained": "yes"}, "trained"),
        ({"kind": "classifier"}, "kind"),
        ({"activation": "tanh"}, "activation"),
        ({"input": {}}, "input contract"),
        ({"lesions": {"min_score": 0.1}}, "lesion rule"),
        ({"lesions": lesion_rule(nms_iou=1.5)}, "nms_iou is not between 0 and 1"),
        ({"lesions": lesion_rule(nms_iou="0.5")}, "nms_iou is not between 0 and 1"),
        ({"lesions": lesion_rule() | {"max": 5}}, "lesion rule"),
        ({"notes": [1]}, "notes"),
    ],
)
def test_cards_of_another_form_are_refused(saved, change, message):
    raw = json.loads(saved[0]) | change
    with pytest.raises(ModelError, match=message) as caught:
        parse_card(json.dumps(raw).encode(), where="s3://models/x")
    assert str(caught.value).startswith("s3://models/x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[]", b"null"])
def test_a_card_that_is_no_table_is_refused(raw):
    with pytest.raises(ModelError):
        parse_card(raw, where="here")


def test_another_window_may_be_declared(saved):
    raw = json.loads(saved[0])
    raw["input"]["window_center_hu"] = -500
    card = parse_card(json.dumps(raw).encode(), where="here")
    assert card.input["window_center_hu"] == -500
    assert len(card.model_id) == 12


@pytest.mark.parametrize(
    "wrong",
    [
        {"backbone": "vgg16"},
        {"truncation": 3},
        {"backbone": "resnet50", "truncation": 1},
        {"lesion_classes": ()},
        {"lesion_classes": ("ggo", "ggo")},
        {"image_classes": ("covid",)},
        {"image_classes": ("covid", "Covid 19"), "ranked": 1, "hidden": 1},
        {"image_classes": COVIDX, "ranked": 0},
    ],
)
def test_nonsense_architectures_are_refused(wrong):
    good = Arch("resnet18", 1, BOTH, mask_head=False, ranked=16, hidden=8)
    with pytest.raises(ModelError):
        replace(good, **wrong)


def test_classifier_from_detector_keeps_the_weights_and_says_what_is_untrained():
    of = arch(masks=True)
    detector = LoadedModel(fresh(of, seed=3), Card("d", of, trained=True, notes=("old",)))
    made = checkpoint.classifier_from_detector(detector, seed=4)
    assert (made.card.arch.ranked, made.card.arch.hidden) == (128, 512)
    assert made.card.kind == "classifier"
    assert not made.card.trained
    assert made.card.notes[0] == "old"
    assert "seed 4" in made.card.notes[1]
    there, here = detector.net.state_dict(), made.net.detector.state_dict()
    assert all(torch.equal(there[name], here[name]) for name in here)
    with pytest.raises(ModelError, match="already"):
        checkpoint.classifier_from_detector(made, seed=4)
