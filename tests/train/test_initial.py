"""The net that a run starts from, and what its card will say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision import models
from torchvision.models._api import WeightsEnum

from cctmn import config
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.data.lesions import LesionSample
from cctmn.errors import CctmnError, ConfigError, DataError, ModelError, PreflightError
from cctmn.model import checkpoint
from cctmn.model.card import Card
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.train import initial, run
from cctmn.train.datasets import Data
from cctmn.train.stages import stage_of
from tests.train.small import INPUT, detector_folder

SMALL = ("backbone=resnet18", "truncation=2")


def detector(*sets: str, model: str | None = None) -> checkpoint.LoadedModel:
    settings = config.load(DetectorConfig, sets=[*SMALL, *sets])
    start = initial.detector(settings, model=model)
    return start if model else initial.with_imagenet(start, config=settings)


def classifier(model: Path | None, *sets: str) -> checkpoint.LoadedModel:
    settings = config.load(ClassifierConfig, sets=sets)
    return initial.classifier(settings, model=model and str(model))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    """The names under which both have the same values."""
    return {n for n in left.keys() & right.keys() if torch.equal(left[n], right[n])}


def saved(model: checkpoint.LoadedModel, folder: Path) -> Path:
    checkpoint.save(model.net, folder, card=model.card)
    return folder


@pytest.fixture(scope="module")
def resnet18() -> dict[str, Tensor]:
    """Weights as torchvision's file has them: it is older than num_batches_tracked."""
    torch.manual_seed(5)
    weights = models.resnet18(weights=None).state_dict()
    for value in weights.values():
        if value.is_floating_point():
            value += torch.rand(value.shape)  # so that no two are alike
    return {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector."""
    return detector_folder(tmp_path_factory.mktemp("detector"), seed=7)


@pytest.fixture(scope="module")
def stage2(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained classifier on top of it."""
    model = classifier(folder, "ranked=16", "hidden=8")
    return saved(model, tmp_path_factory.mktemp("classifier"))


# --- stage 1


def test_random_weights_are_those_of_the_seed():
    one, same_seed, other = (
        detector("init=none", f"optim.seed={seed}").net.state_dict() for seed in (3, 3, 4)
    )
    assert same(one, same_seed) == one.keys()
    assert "backbone.body.conv1.weight" not in same(one, other)


def test_a_new_net_has_the_settings_shape():
    model = detector("init=none", "lesions=ggo")
    assert isinstance(model.net, Detector)
    assert model.net.arch == model.card.arch
    assert (model.card.arch.truncation, model.card.arch.lesion_classes) == (2, ("ggo",))
    assert model.card.arch.mask_head
    assert (model.card.trained, model.card.name) == (False, "resnet18-t2-ggo")


def filled(net: Detector, weights: dict[str, Tensor]) -> bool:
    body = net.backbone.body.state_dict()
    return same(body, weights) == {n for n in body if not n.endswith("num_batches_tracked")}


def test_backbone_from_a_file(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "resnet18.pth")
    model = detector(f"init={tmp_path}/resnet18.pth")
    assert filled(model.net, resnet18)
    without = detector("init=none").net.state_dict()
    rest = {name for name in without if not name.startswith("backbone.body.")}
    assert same(model.net.state_dict(), without) >= rest


def test_backbone_from_imagenet(resnet18, monkeypatch):
    asked: list[str] = []

    def get_state_dict(weights: WeightsEnum, **options: Any) -> dict[str, Tensor]:
        asked.append(weights.url)
        return resnet18

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    assert filled(detector("init=imagenet").net, resnet18)
    assert [url.rpartition("/")[2] for url in asked] == ["resnet18-f37072fd.pth"]


def without_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_state_dict(weights: WeightsEnum, **options: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)


def write(kind: str, folder: Path) -> Path:
    """A file that is not the one that is wanted."""
    path = folder / "weights.pth"
    values: dict[str, Callable[[], Any]] = {
        "resnet34": lambda: models.resnet34(weights=None).state_dict(),
        "wide": lambda: (
            models.resnet18(weights=None).state_dict() | {"conv1.weight": torch.zeros(32, 3, 7, 7)}
        ),
        "list": lambda: [torch.zeros(3)],
        "nested": lambda: {"model": models.resnet18(weights=None).state_dict()},
        "module": lambda: torch.nn.Linear(2, 2),
    }
    raw = {
        "text": b"weights",
        "empty": b"",
        "binary": b"\x80\x02X\x04\x00\x00\x00\xff\xfe\xfd\xfc.",
    }
    if kind in values:
        torch.save(values[kind](), path)
    elif kind in raw:
        path.write_bytes(raw[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("resnet34", "not the weights of a resnet18"),  # which has all layers of a ResNet-18
        ("wide", r"not the weights of a resnet18 \(size mismatch for conv1.weight"),
        ("nested", "lacks weights of resnet18"),
        ("list", "not a file of plain weights"),
        ("module", "not a file of plain weights"),
        ("text", "not a file of plain weights"),
        ("empty", "not a file of plain weights"),
        ("binary", "not a file of plain weights"),
        ("missing", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, kind, message):
    path = write(kind, tmp_path)
    with pytest.raises(ModelError, match=message) as raised:
        detector(f"init={path}")
    one_line(raised.value, names=str(path))


def one_line(error: CctmnError, *, names: str) -> None:
    assert "\n" not in str(error)
    assert names in str(error)


def test_resnet18_is_no_resnet34(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="lacks weights of resnet34"):
        detector("backbone=resnet34", f"init={tmp_path}/weights.pth")


def test_without_internet_it_says_what_to_do(monkeypatch):
    without_internet(monkeypatch)
    with pytest.raises(PreflightError, match="init=FILE, or init=none") as raised:
        detector("init=imagenet", "backbone=resnet50", "truncation=0")
    # the paper's; IMAGENET1K_V2 is younger
    one_line(raised.value, names="resnet50-0676ba61.pth")


def test_continuing_from_a_detector_keeps_its_weights(folder):
    model = detector("init=imagenet", model=str(folder))  # which is not asked for
    there = checkpoint.load(folder)
    assert same(model.net.state_dict(), there.net.state_dict()) == there.net.state_dict().keys()
    assert model.card == there.card
    assert model.card.input["size_px"] == INPUT["size_px"]


def test_stage_1_needs_a_detector_with_masks(stage2, tmp_path):
    bare = detector_folder(tmp_path, mask_head=False)
    for model in (stage2, bare):
        with pytest.raises(ModelError, match="not a detector with a mask head") as raised:
            detector(model=str(model))
        one_line(raised.value, names=str(model))


# --- stage 2


@pytest.mark.parametrize("masks", [True, False])
def test_stage_2_from_a_detector(folder, masks):
    model = classifier(folder, "ranked=16", "hidden=8", f"masks={str(masks).lower()}")
    net, there = model.net, checkpoint.load(folder).net.state_dict()
    assert isinstance(net, Classifier)
    assert (net.arch.ranked, net.arch.hidden, net.arch.mask_head) == (16, 8, masks)
    own = net.detector.state_dict()
    assert same(own, there) == own.keys()
    assert (own.keys() == there.keys()) == masks
    assert model.card.input["size_px"] == INPUT["size_px"]
    assert not model.card.trained


def test_module_s_depends_on_the_seed(folder):
    one, same_seed, other = (
        classifier(folder, "hidden=8", f"optim.seed={seed}").net.module_s.state_dict()
        for seed in (3, 3, 4)
    )
    assert same(one, same_seed) == one.keys()
    assert same(one, other) == set()


def test_a_classifier_is_tuned_on(stage2):
    before = checkpoint.load(stage2).net.state_dict()
    again = classifier(stage2)
    assert same(again.net.state_dict(), before) == before.keys()
    other = classifier(stage2, "classes=control,covid")
    assert other.card.arch.image_classes == ("control", "covid")
    after = other.net.state_dict()
    assert before.keys() - same(after, before) == {"module_s.4.weight", "module_s.4.bias"}
    assert after["module_s.4.bias"].shape == (2,)
    assert not other.card.trained


def test_a_classifier_keeps_its_size(stage2):
    for setting in ("ranked", "hidden"):
        with pytest.raises(ConfigError, match=f"{setting}: .* cannot change"):
            classifier(stage2, f"{setting}=32")
    classifier(stage2, "ranked=16", "hidden=8")


def test_stage_2_needs_a_model(tmp_path):
    with pytest.raises(ConfigError, match="-m MODEL"):
        classifier(None)
    with pytest.raises(ModelError, match=r"card\.json not found"):
        classifier(tmp_path)


# --- the card


def trained(card: Card, settings: DetectorConfig | ClassifierConfig) -> Card:
    return trained_card(card, settings, {"seed": 3})


def trained_card(
    card: Card, settings: DetectorConfig | ClassifierConfig, provenance: dict[str, object]
) -> Card:
    activation = stage_of(settings).activation or card.activation
    return initial.trained_card(
        card, name="trained", activation=activation, note=settings.note, provenance=provenance
    )


@pytest.mark.parametrize(("loss", "activation"), [("bce", "sigmoid"), ("cross-entropy", "softmax")])
def test_activation_is_that_of_the_loss(folder, loss, activation):
    start = classifier(folder, "hidden=8").card
    assert any("untrained" in note for note in start.notes)
    card = trained(start, ClassifierConfig(loss=loss, note="of phantoms"))
    assert (card.activation, card.trained, card.name) == (activation, True, "trained")
    assert card.notes == ("of phantoms",)
    assert (card.arch, card.input) == (start.arch, start.input)
    again = trained(card, ClassifierConfig(note="of phantoms"))  # tuned on
    assert (again.notes, again.activation) == (("of phantoms",), "sigmoid")


def test_provenance_has_seed_and_settings_but_no_path(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "secret.pth")
    sets = [*SMALL, f"init={tmp_path}/secret.pth", "optim.seed=12", "optim.lr=0.5"]
    settings = config.load(DetectorConfig, sets=sets)
    place = f"{tmp_path}/secret"
    job = run.TrainJob(settings, data=Data(place), out=f"{place}/out")
    start = initial.detector(settings, model=None)
    train, valid = (
        tuple(LesionSample(f"{secret}_{i}", "", "", f"{secret}{i // 2}") for i in range(count))
        for secret, count in (("secret-a", 9), ("secret-b", 2))
    )
    provenance = run._provenance(job, parts=(train, valid), chosen_on=valid)
    card = trained_card(start.card, settings, provenance)
    text = json.dumps(dict(card.provenance))
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert (provenance["seed"], provenance["slices"], provenance["patients"]) == (12, 9, 5)
    assert provenance["validation"] == {"slices": 2, "patients": 1}
    assert provenance["settings"]["optim"]["lr"] == 0.5
    assert provenance["settings"]["init"] == "file"
    assert "hardware" not in provenance["settings"]


def test_provenance_names_the_initial_weights(folder):
    before = checkpoint.load(folder).card
    card = trained(before, DetectorConfig())
    assert card.provenance == {
        "seed": 3,
        "started_from": {"weights_sha256": before.weights_sha256},
    }
    assert card.weights_sha256 == ""


def test_the_card_of_a_classifier_keeps_the_settings_of_its_detector(folder):
    before = checkpoint.load(folder).card
    stage_1 = {"stage": "detector", "settings": {"optim": {"lr": 1e-5}, "note": "by M."}}
    stage_1 |= {"slices": 650, "validation": {"slices": 90, "patients": 9}}
    detector = trained_card(before, DetectorConfig(), stage_1)
    stage_2 = {"stage": "classifier", "settings": {"optim": {"lr": 1e-4}}, "slices": 3000}
    card = trained_card(detector, ClassifierConfig(), stage_2)
    assert card.described["training"] == {
        **stage_2,
        "started_from": {
            "stage": "detector",
            "settings": {"optim": {"lr": 1e-5}},
            "slices": 650,
            "valid_slices": 90,
        },
    }


def test_data_are_checked_before_weights_are_downloaded(tmp_path, monkeypatch):
    without_internet(monkeypatch)
    settings = config.load(DetectorConfig, sets=[*SMALL, "init=imagenet"])
    job = run.TrainJob(settings, data=Data(str(tmp_path / "absent")), out=str(tmp_path / "out"))
    with pytest.raises(DataError, match="absent"):
        run.train(job)
    assert not (tmp_path / "out").exists()


def test_a_model_has_its_own_name_or_that_of_its_folder(tmp_path: Path) -> None:
    def job(out: str, **values: str) -> run.TrainJob:
        return run.TrainJob(DetectorConfig(), data=Data("x"), out=out, **values)

    assert job(f"{tmp_path}/second det/").model_name == "second det"
    assert job("s3://models/2026/det").model_name == "det"
    assert job("det", name="ward 3").model_name == "ward 3"
