"""Our answers against the outputs of the author's code on real slices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cctmn.model.legacy import import_checkpoint
from tests.model.conftest import grey


def test_classifier_gives_the_authors_logits(shared: Path) -> None:
    net, card = import_checkpoint(shared / "reference" / "classification_model_r18t1.pth")
    assert (card.arch.ranked, card.arch.hidden) == (128, 512)
    expected = json.loads((shared / "reference" / "classification_expected.json").read_text())
    for name, there in expected.items():
        (here,) = net.predict([grey(shared / "data" / "ct_slices" / name)])
        assert here.logits_C.argmax() == np.argmax(there["logits"])
        np.testing.assert_allclose(here.logits_C, there["logits"], atol=1e-3, err_msg=name)
        np.testing.assert_allclose(here.ranked_N5[:8], there["ranked_first8"], atol=1e-4)
        assert abs(here.ranked_N5[:, 0].sum() - there["score_sum"]) < 1e-4
        assert len(here.ranked_N5) == there["rows"]
        assert len(np.unique(here.ranked_N5, axis=0)) == there["distinct_rows"]


def test_detector_gives_the_authors_lesions(shared: Path) -> None:
    net, _ = import_checkpoint(shared / "reference" / "segmentation_model_r18t1.pth")
    expected = json.loads((shared / "reference" / "segmentation_expected.json").read_text())
    for name, there in expected.items():
        (here,) = net.predict([grey(shared / "data" / "ct_slices" / name)])
        assert here.labels_M.tolist() == [lesion["label"] for lesion in there], name
        for i, lesion in enumerate(there):
            np.testing.assert_allclose(here.boxes_M4[i], lesion["box"], atol=0.5)
            assert here.scores_M[i] == pytest.approx(lesion["score"], abs=1e-3)
            assert here.mask_px_M[i] == pytest.approx(lesion["mask_px"], rel=0.01)
