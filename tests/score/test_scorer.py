"""From prepared slices to prediction rows, with a scorer that is no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cctmn import schema
from cctmn.errors import SLICE_CODES
from cctmn.score.prepare import PREPARED
from cctmn.score.scorer import ImageArray, score
from tests.makers import StandIn, stand_in

SOURCE = stand_in()


def a_slice(slice_id: str, *, grey: int = 100, **columns: Any) -> dict[str, Any]:
    """A prepared slice: 4 x 8 px of the input, each of which is 2 x 2 px of the stored image."""
    row = dict.fromkeys(PREPARED.names) | {"slice_id": slice_id, "frame": 0, "flags": []}
    row |= {"rows": 8, "cols": 16, "error_code": "", "t_decode_ms": 1.0}
    row |= {"pixels": bytes([grey] * 32), "input_rows": 4, "input_cols": 8}
    return row | {"to_stored": [2.0, 0, 0, 0, 2, 0]} | columns


def an_error(slice_id: str, code: str) -> dict[str, Any]:
    empty = {"pixels": b"", "input_rows": 0, "input_cols": 0, "to_stored": []}
    return a_slice(slice_id) | {"error_code": code} | empty


def scored(*rows: dict[str, Any], source: Any = SOURCE, **options: Any) -> list[dict[str, Any]]:
    options = {"scorer": StandIn(), "batch_size": 2, "ranked_boxes": False} | options
    table = pa.Table.from_pylist(list(rows), schema=PREPARED)
    got = score(table, source=source, **options)
    columns = schema.predictions(source.image_classes, ranked_boxes=options["ranked_boxes"])
    assert got.schema.equals(columns, check_metadata=True)
    return list(got.to_pylist())


def test_rows_keep_their_order_and_errors_reach_no_scorer() -> None:
    batches: list[int] = []

    class Counting(StandIn):
        def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[SimpleNamespace]:
            batches.append(len(images))
            return super().predict(images, masks=masks)

    slices = [a_slice(str(n), grey=n) for n in range(3)]
    rows = scored(slices[0], an_error("e", "truncated"), *slices[1:], scorer=Counting())
    assert [row["slice_id"] for row in rows] == ["0", "e", "1", "2"]
    assert batches == [2, 1]
    error = rows[1]
    assert error["error_message"] == SLICE_CODES["truncated"]
    assert (error["lesions"], error["num_lesions"], error["abstained"]) == ([], 0, False)
    assert error["p_covid"] is error["pred_class"] is error["max_lesion_score"] is None
    assert {row["model_id"] for row in rows} == {"standin"}


def test_probabilities_are_of_the_logits_at_the_temperature() -> None:
    [row] = scored(a_slice("1"))
    logits = np.array([row[f"logit_{name}"] for name in SOURCE.image_classes])
    p = np.array([row[f"p_{name}"] for name in SOURCE.image_classes])
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert row["pred_class"] == SOURCE.image_classes[int(logits.argmax())]

    softer = dataclasses.replace(SOURCE, activation="softmax", temperature=2.0)
    [row] = scored(a_slice("1"), source=softer)
    exponents = np.exp(logits / 2)
    p = [row[f"p_{name}"] for name in SOURCE.image_classes]
    np.testing.assert_allclose(p, exponents / exponents.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        [row[f"logit_{name}"] for name in SOURCE.image_classes], logits, rtol=1e-6
    )


def test_boxes_and_areas_are_in_px_of_the_stored_image() -> None:
    class WithMasks(StandIn):
        def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[SimpleNamespace]:
            predictions = super().predict(images, masks=masks)
            for prediction in predictions:
                prediction.mask_px_M = np.array([5])
            return predictions

    [row] = scored(a_slice("1"), scorer=WithMasks(), ranked_boxes=True)
    [lesion] = row["lesions"]
    # the stand-in's box is half as wide and a quarter as high as the input
    assert [lesion[edge] for edge in ("x0", "y0", "x1", "y1")] == [0, 0, 8, 2]
    assert (lesion["label"], lesion["mask_px"]) == ("lesion", 20)
    assert row["max_lesion_score"] == pytest.approx(100 / 255)
    assert [box["x1"] for box in row["ranked_boxes"]] == [2, 2, 2]


@pytest.mark.parametrize("flag", sorted(schema.ABSTAIN_FLAGS))
def test_a_flag_that_forbids_trust_abstains(flag: str) -> None:
    plain, flagged = scored(a_slice("1"), a_slice("2", flags=[flag]))
    assert (plain["abstained"], flagged["abstained"]) == (False, True)
    assert flagged["p_covid"] == plain["p_covid"]


def test_a_detector_has_lesions_and_no_classes() -> None:
    class Detector(StandIn):
        def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[SimpleNamespace]:
            predictions = super().predict(images, masks=masks)
            for prediction in predictions:
                prediction.logits_C = prediction.ranked_boxes_N4 = None
            return predictions

    source = dataclasses.replace(SOURCE, image_classes=())
    [row] = scored(a_slice("1"), source=source, scorer=Detector())
    assert row["num_lesions"] == 1
    assert row["pred_class"] is None
    assert not any(name.startswith(("p_", "logit_")) for name in row)


def test_pixels_reach_the_scorer_as_views_of_the_block() -> None:
    slices = [a_slice("0"), an_error("e", "truncated"), a_slice("1"), a_slice("2", grey=7)]
    # A part of a block begins in the middle of its buffers.
    table = pa.Table.from_pylist(slices, schema=PREPARED).slice(1)
    begin = table["pixels"].chunk(0).buffers()[2].address
    places = [begin + 32, begin + 64]

    class Looking(StandIn):
        def predict(self, images: Sequence[ImageArray], *, masks: bool) -> list[SimpleNamespace]:
            assert [image.ctypes.data for image in images] == places
            assert [int(image.max()) for image in images] == [100, 7]
            return super().predict(images, masks=masks)

    got = score(table, scorer=Looking(), source=SOURCE, batch_size=2, ranked_boxes=False)
    assert got["slice_id"].to_pylist() == ["e", "1", "2"]
