"""The overlap of two sets: of the published lists, and by the content of files."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cctmn.data.labels import covidx_ct, identities, read_table
from cctmn.errors import DataError
from cctmn.evaluate.audit import compare, named, read_set, summary
from cctmn.evaluate.known_sets import known_set
from cctmn.metrics.document import PAPER_REMAINING, PAPER_TEST
from tests.commands import call
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
    tested = known_set(identities(covidx_ct(parts["test"])[0]))
    assert tested is not None
    assert (tested.name, tested.warning) == (PAPER_TEST, "")
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


def test_patients_that_differ_in_case_or_unicode_form_are_shared():
    one = of("one", uri=["x/IM0001.dcm", "x/IM0002.dcm"], patient=["Müller", "p9"])
    other = of("other", uri=["y/IM0001.dcm", "y/IM0002.dcm"], patient=["MU\u0308LLER", "P9"])
    [overlap] = compare([one, other])
    assert overlap.shared["patients"] == ["Müller", "p9"]
    assert overlap.shared["slices"] == []


def test_equal_file_names_of_other_patients_are_not_shared():
    for folder in ("z/", "x/", ""):
        one = of("one", uri=["x/IM0001.dcm"], patient=["1"])
        other = of("other", uri=[f"{folder}IM0001.dcm"], patient=["2"])
        [overlap] = compare([one, other])
        assert overlap.shared["slices"] == []
        assert summary([one, other], [overlap])["warnings"] == []


def test_equal_paths_are_the_same_slice_if_a_patient_is_unknown():
    one = of("one", uri=["./x/IM0001.dcm", "x/IM0002.dcm"], patient=["1", "1"])
    other = of("other", uri=["x/IM0001.dcm", "IM0002.dcm", "y/IM0001.dcm"])
    [overlap] = compare([one, other])
    assert overlap.shared["slices"] == ["IM0002.dcm", "x/IM0001.dcm"]


def test_names_of_public_data_sets_are_the_same_slice_wherever_they_are():
    one = of("one", uri=["a/NCP_1_2_3.png", "b/pCT11.jpg"], patient=["NCP_1", ""])
    other = of("other", uri=["2_1_2_3.png", "2_pCT11.jpg"], patient=["1", ""])
    [overlap] = compare([one, other])
    assert overlap.counts()["slices"] == 2


def test_slices_of_unknown_patients_are_counted():
    sets = [of("one", uri=["a", "b"], patient=["", "1"]), of("other", uri=["c"], patient=["2"])]
    about = summary(sets, compare(sets))
    assert [s["unknown_patients"] for s in about["sets"]] == [1, 0]
    assert about["warnings"] == [
        "one: the patient of 1 of 2 slices is unknown, so they could not be checked for shared "
        "patients."
    ]


def test_two_sets_of_one_name_keep_their_own_counts():
    sets = [of("l.csv", uri=["a", "b"], patient=["1", "2"]), of("l.csv", uri=["c"], patient=["1"])]
    [warning] = summary(sets, compare(sets))["warnings"]
    assert "1 of the 2 patients of the first and of the 1 of the second" in warning


def test_the_command_says_what_it_could_not_check(tmp_path):
    (tmp_path / "a.csv").write_text("uri,label\na.png,covid\n")
    (tmp_path / "b.csv").write_text("uri,label,patient\nb.png,covid,1\n")
    done = call("labels", "audit", tmp_path / "a.csv", tmp_path / "b.csv")
    assert done.returncode == 0
    assert "a.csv: 1 slices could not be checked for shared patients" in done.stdout


def test_the_audit_case(shared):
    folder = shared / "cases/evaluation/audit"
    a, b, c = (
        read_set(read_table(str(folder / f"{name}.csv"))[0], name=name) for name in ("a", "b", "c")
    )
    with_b, with_c, _ = compare([a, b, c])
    assert with_b.counts()["patients"] == 2
    assert not any(with_c.shared.values())
