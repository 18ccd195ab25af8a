"""Measure how well scores in another precision agree with those in float32, on slices of phantoms.

    python -m tests.precision bfloat16 --slices 100
    python -m tests.precision tf32 --gpu -m model

Both are computed by the scorer of `cctmn score`, one after the other: TF32 is a setting of the
whole process. Controls, pneumonia and COVID-19 come in turn, each slice at a height where the
finding of its patient is visible.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from cctmn import numerics
from cctmn.classes import COVIDX_CLASSES
from cctmn.contract import InputContract
from cctmn.model.probabilities import probabilities
from cctmn.phantom import draw
from cctmn.read.preprocess import window
from cctmn.score import models, scorer

BATCH = {False: 4, True: 16}  # slices per forward pass on the CPU and on a GPU, as in a job
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Agreement:
    """How well two lists of predictions of the same slices agree."""

    slices: int
    equal_classes: float  # fraction of the slices
    largest_probability_difference: float
    median_logit_difference: float  # of the largest difference of each slice
    largest_logit_difference: float
    lesions: int  # of the first predictions
    other_lesions: int
    matched_lesions: int  # pairs of one class whose boxes overlap by MATCH_IOU, each lesion once


def phantoms(count: int, *, contract: InputContract, seed: int) -> list[NDArray[np.uint8]]:
    """Slices of as many patients of each class in turn, in the window of the model."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        finding = COVIDX_CLASSES[number % len(COVIDX_CLASSES)]
        hu = draw.visible_slice(draw.Patient.drawn(rng, finding=finding), rng=rng).hu
        pictures.append(window(hu, contract))
    return pictures


def predict(
    source: scorer.ModelSource, images: Sequence[NDArray[np.uint8]], *, gpu: bool
) -> tuple[list[Any], float, str]:
    """Return the predictions, the seconds per slice, and the name of the device."""
    net = source.load(gpu)
    net.predict(images[:1], masks=False)  # the first pass also allocates
    began, predictions = time.perf_counter(), []
    for start in range(0, len(images), BATCH[gpu]):
        predictions += net.predict(images[start : start + BATCH[gpu]], masks=False)
    elapsed_s = time.perf_counter() - began
    return predictions, elapsed_s / len(images), scorer.device_name(net)


def compare(one: Sequence[Any], two: Sequence[Any], source: scorer.ModelSource) -> Agreement:
    """Compare two lists of predictions of a classifier."""
    logits, others = (np.stack([p.logits_C for p in each]) for each in (one, two))
    difference_B = np.abs(logits - others).max(axis=1)
    p, q = (
        probabilities(z, activation=source.activation, temperature=source.temperature)
        for z in (logits, others)
    )
    return Agreement(
        slices=len(one),
        equal_classes=float((logits.argmax(1) == others.argmax(1)).mean()),
        largest_probability_difference=float(np.abs(p - q).max()),
        median_logit_difference=float(np.median(difference_B)),
        largest_logit_difference=float(difference_B.max()),
        lesions=sum(len(each.labels_M) for each in one),
        other_lesions=sum(len(each.labels_M) for each in two),
        matched_lesions=sum(map(matches, one, two)),
    )


def matches(one: Any, two: Any) -> int:
    """Pairs of lesions of one class that overlap by MATCH_IOU, the largest overlaps first."""
    if not len(one.labels_M) or not len(two.labels_M):
        return 0
    iou_MM = box_ious(one.boxes_M4, two.boxes_M4)
    iou_MM[one.labels_M[:, None] != two.labels_M[None]] = 0
    pairs = 0
    while iou_MM.max() >= MATCH_IOU:
        i, j = np.unravel_index(iou_MM.argmax(), iou_MM.shape)
        iou_MM[i], iou_MM[:, j] = 0, 0
        pairs += 1
    return pairs


def box_ious(one_A4: NDArray[Any], two_B4: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each pair of boxes, A x B."""
    one_A4, two_B4 = one_A4.astype(np.float64), two_B4.astype(np.float64)
    low = np.maximum(one_A4[:, None, :2], two_B4[None, :, :2])
    high = np.minimum(one_A4[:, None, 2:], two_B4[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one_A4, two_B4)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)


@click.command()
@click.argument("precision", type=click.Choice(numerics.PRECISIONS))
@click.option("-m", "--model", default="cctmn:demo", show_default=True, help="Model folder.")
@click.option("--slices", default=500, show_default=True, help="Number of slices.")
@click.option("--seed", default=0, show_default=True, help="Seed of the phantoms.")
@click.option("--gpu", is_flag=True, help="Compute both on a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(precision: str, model: str, slices: int, seed: int, gpu: bool, as_json: bool) -> None:
    """Compare PRECISION with float32."""
    sources = [models.open_source(model, precision=p) for p in (numerics.FLOAT32, precision)]
    contract = InputContract.from_card(sources[0].input)
    images = phantoms(slices, contract=contract, seed=seed)
    (one, one_s, device), (two, two_s, _) = (predict(s, images, gpu=gpu) for s in sources)
    found = compare(one, two, sources[0])
    if as_json:
        click.echo(json.dumps(asdict(found) | {"device": device, "seconds": [one_s, two_s]}))
        return
    click.echo(f"{precision} against float32, {found.slices} slices of phantoms, {model}, {device}")
    click.echo(f"  classes equal: {100 * found.equal_classes:.1f} %")
    click.echo(f"  largest difference of a probability: {found.largest_probability_difference:.4f}")
    click.echo(
        f"  difference of a logit: {found.median_logit_difference:.3g} in the median slice, "
        f"{found.largest_logit_difference:.3g} at most"
    )
    click.echo(
        f"  lesions: {found.lesions} in float32, {found.other_lesions} in {precision}, "
        f"{found.matched_lesions} matched at IoU {MATCH_IOU}"
    )
    click.echo(f"  seconds per slice: {one_s:.3f} in float32, {two_s:.3f} in {precision}")


if __name__ == "__main__":
    main()
