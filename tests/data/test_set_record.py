"""The record of a set: it recognises members under other names, and names nobody."""

from __future__ import annotations

import json

from cctmn.data.set_record import MOST_HASHES, Members, compare, record


def members(patients: range, slices: int = 3) -> Members:
    pairs = [(f"P-{p}", f"/archive/P-{p}/IM{i:04d}.dcm") for p in patients for i in range(slices)]
    return Members.of([p for p, _ in pairs], [name for _, name in pairs])


def test_a_small_set_is_recognised_whole() -> None:
    recorded = json.loads(json.dumps(record(members(range(40)))))
    shared = compare(recorded, members(range(30, 50)))
    assert (shared.patients, shared.slices) == (10, 30)
    assert (shared.recorded_patients, shared.recorded_slices) == (40, 120)
    assert not shared.is_sampled


def test_a_large_set_is_recognised_by_a_sample() -> None:
    recorded = record(members(range(900), slices=1))
    assert len(recorded["patients"]["hashes"].split()) == MOST_HASHES
    same = compare(recorded, members(range(900), slices=1))
    assert (same.patients, same.slices, same.is_sampled) == (MOST_HASHES, MOST_HASHES, True)
    third = compare(recorded, members(range(600, 1200), slices=1))
    assert 120 < third.patients < 220  # a third of 500
    assert compare(recorded, members(range(900, 1500))).patients == 0


def test_slices_are_recognised_in_other_folders_and_public_sets_under_other_names() -> None:
    recorded = record(Members.of(["A", "", ""], ["/x/IM1.dcm", "NCP_96_1328_0007.png", "/x/a.png"]))
    moved = Members.of(["a", "", ""], ["s3://b/IM1.dcm", "2_96_1328_0007.png", "/y/a.png"])
    assert compare(recorded, moved).slices == 2
    # Every scanner writes IM1.dcm: of another patient it is another slice.
    assert compare(recorded, Members.of(["B"], ["/x/IM1.dcm"])).slices == 0


def test_a_record_names_nobody_and_differs_each_time() -> None:
    text = json.dumps(record(members(range(5))))
    assert "P-" not in text
    assert "p-" not in text
    assert "IM0" not in text
    assert text != json.dumps(record(members(range(5))))
