"""The numbers of parameters: of each part, and beside those that the author published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cctmn.model import checkpoint
from cctmn.model.card import Arch, Card, parameter_counts
from cctmn.model.classifier import Classifier
from cctmn.model.detector import Detector
from cctmn.model.legacy import import_checkpoint

LESIONS = ("ggo", "consolidation")
IMAGES = ("control", "pneumonia", "covid")


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def statistics(net: nn.Module) -> int:
    """Buffers of batch norm: running means and variances, and a counter per layer."""
    return sum(b.numel() for b in net.buffers())


def detector(backbone: str, truncation: int) -> Detector:
    with torch.device("meta"):
        return Detector(Arch(backbone, truncation, LESIONS, mask_head=True))


def classifier(backbone: str, truncation: int) -> Classifier:
    ranked, hidden = (256, 1024) if backbone == "resnet50" else (128, 512)
    arch = Arch(backbone, truncation, LESIONS, False, IMAGES, ranked, hidden)
    with torch.device("meta"):
        return Classifier(arch)


def pyramid_of_512(net: Detector) -> int:
    """Parameters more in a pyramid whose input has 512 channels, as without truncation."""
    (inner,) = net.backbone.fpn.inner_blocks
    return inner[0].out_channels * (512 - inner[0].in_channels)


@pytest.mark.parametrize(
    ("backbone", "truncation", "published"), [("resnet50", 0, 31.78), ("resnet34", 1, 11.45)]
)
def test_published_counts_of_detectors_include_running_statistics(
    backbone: str, truncation: int, published: float
) -> None:
    net = detector(backbone, truncation)
    assert round((count(net) + statistics(net)) / 1e6, 2) == published


def test_the_published_count_of_the_resnet50_classifier_is_the_detector_and_module_s() -> None:
    net = classifier("resnet50", 0)
    assert round(31.78 + count(net.module_s) / 1e6, 2) == 34.14
    assert round(count(net) / 1e6, 2) == 31.47


@pytest.mark.parametrize(
    ("backbone", "truncation", "published"),
    [
        ("resnet34", 0, 24.86),
        ("resnet34", 1, 11.74),
        ("resnet34", 2, 4.92),
        ("resnet18", 0, 14.75),
        ("resnet18", 1, 6.35),
        ("resnet18", 2, 4.25),
    ],
)
def test_published_counts_of_lightweight_classifiers_fit_an_untruncated_pyramid(
    backbone: str, truncation: int, published: float
) -> None:
    """Within 0.01 million. No checkpoint has such a pyramid, so it is an inference."""
    net = classifier(backbone, truncation)
    more = pyramid_of_512(net.detector) + statistics(net)
    assert (count(net) + more) / 1e6 == pytest.approx(published, abs=0.01)


def test_the_published_count_of_the_resnet18_detector_fits_an_untruncated_pyramid() -> None:
    net = detector("resnet18", 1)
    more = pyramid_of_512(net) + statistics(net)
    assert round((count(net) + more) / 1e6, 2) == 6.12


@pytest.mark.parametrize(
    ("backbone", "truncation", "of_s", "with_batch_norm"),
    [("resnet50", 0, 2.36, 2.42), ("resnet34", 1, 0.59, 0.60), ("resnet18", 1, 0.59, 0.60)],
)
def test_trainable_counts_are_the_published_ones(
    backbone: str, truncation: int, of_s: float, with_batch_norm: float
) -> None:
    net = classifier(backbone, truncation)
    norms = sum(count(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert round(count(net.module_s) / 1e6, 2) == of_s
    assert round((count(net.module_s) + norms) / 1e6, 2) == with_batch_norm


def test_counts_from_a_file_equal_those_of_the_network() -> None:
    arch = Arch("resnet18", 2, LESIONS, False, IMAGES, 4, 8)
    net = checkpoint.fresh(arch, seed=0)
    weights = checkpoint.to_bytes(net, card=Card("x", arch, trained=False))[1]
    norms = sum(count(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert isinstance(net, Classifier)
    assert parameter_counts(weights) == {
        "parameters": count(net),
        "module_s": count(net.module_s),
        "batch_norm": norms,
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("segmentation_model_r18t1", 6_052_584), ("classification_model_r18t1", 6_283_880)],
)
def test_the_authors_checkpoints_have_as_many_parameters_as_ours(
    shared: Path, name: str, parameters: int
) -> None:
    net, _ = import_checkpoint(shared / f"reference/{name}.pth")
    assert count(net) == parameters
