"""The overlap of two sets: of the published lists, and by the content of files."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cctmn.data.labels import covidx_ct, identities
from cctmn.errors import DataError
from cctmn.evaluate.audit import compare, named, read_set, summary
from cctmn.evaluate.known_sets import known_set
from cctmn.metrics.document import PAPER_REMAINING
from tests.makers import png


def of(name, **columns):
    return read_set(pa.table(columns), name=name)


def test_overlap_of_the_published_lists(shared):
    """606 of the 608 sampled patients are in the 58,782 set; COVIDx-CT's splits share nobody."""
    data = shared / "data"
    sampled = str(data / "covid_ct_mask_net/train_split_classification.txt")
    parts = {p: str(data / f"covidx_ct_v1/{p}_COVIDx_CT-1.txt") for p in ("train", "val", "test")}
    rest, _ = covidx_ct(parts["train"], exclude=sampled)
    sets = [read_set(covidx_ct(place)[0], name=part) for part, place in parts.items()]
    for overlap in compare(sets):
        assert {k: v for k, v in overlap.shared.items() if v} == {}
    assert summary(sets, compare(sets))["warnings"] == []
    known = known_set(identities(rest))
    assert known is not None
    assert known.name == PAPER_REMAINING
    sets = [read_set(covidx_ct(sampled)[0], name="sample"), read_set(rest, name="rest")]
    [overlap] = compare(sets)
    assert overlap.counts() == {
        "a": "sample",
        "b": "rest",
        "patients": 606,
        "scans": 914,
        "slices": 0,
        "files": None,
        "pixels": None,
    }
    [warning] = summary(sets, [overlap])["warnings"]
    assert "606 of the 608 patients of the first and of the 862 of the second" in warning


def test_equal_scan_numbers_of_different_patients_are_not_shared():
    one = of("one", uri=["a", "b"], patient=["1", "2"], scan=["1", "1"])
    other = of("other", uri=["c", "d"], patient=["1", "3"], scan=["2", "1"])
    [overlap] = compare([one, other])
    assert overlap.shared["patients"] == ["1"]
    assert overlap.shared["scans"] == []
    assert named([overlap]) == {"a": ["one"], "b": ["other"], "kind": ["patients"], "name": ["1"]}


def test_unknown_patients_are_not_shared():
    [overlap] = compare([of("one", uri=["a"], patient=[""]), of("other", uri=["b"], patient=[""])])
    assert overlap.shared["patients"] == []
    assert named([overlap]) == {"a": [], "b": [], "kind": [], "name": []}


def test_hashes_find_copied_files_and_equal_pictures(tmp_path):
    """A copy under another name is the same file, the same greys in a TIFF the same picture."""
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "copy.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(tmp_path / "b.png"))).save(buffer, "TIFF")
    (tmp_path / "b.tif").write_bytes(buffer.getvalue())
    (tmp_path / "broken.png").write_bytes(png(3)[:99])
    sets = [
        read_set(pa.table({"uri": uris}), name=name, root=str(tmp_path), hashes=True)
        for name, uris in (
            ("one", ["a.png", "b.png"]),
            ("other", ["copy.png", "b.tif", "broken.png", "none.png"]),
        )
    ]
    [overlap] = compare(sets)
    counts = overlap.counts()
    assert (counts["slices"], counts["files"], counts["pixels"]) == (0, 1, 2)
    about = summary(sets, [overlap])
    assert [s["unreadable"] for s in about["sets"]] == [0, 2]
    assert about["warnings"]


def test_hashes_need_loose_files():
    with pytest.raises(DataError, match="no column uri"):
        read_set(pa.table({"slice_id": ["a"]}), name="ids", hashes=True)
    with pytest.raises(DataError, match="is in an archive"):
        read_set(pa.table({"uri": ["z.zip::a"]}), name="zip", hashes=True)
