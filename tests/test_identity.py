"""The identity of a run: fingerprint, differences, and documents of older versions."""

from __future__ import annotations

from cctmn.identity import RunIdentity


def test_fingerprint_depends_on_content_and_not_on_order() -> None:
    one = RunIdentity({"a": 1, "b": {"c": (1, 2)}})
    assert one.fingerprint() == RunIdentity({"b": {"c": [1, 2]}, "a": 1}).fingerprint()
    assert one.fingerprint() != RunIdentity({"a": 2, "b": {"c": [1, 2]}}).fingerprint()


def test_fingerprint_of_older_folders_is_unchanged() -> None:
    # Computed by the version that called the identity "answers".
    expected = "43258cff783fe7036d8a43033f830adfc60ec037382473548ac742b888292777"
    assert RunIdentity({"b": 2, "a": 1}).fingerprint() == expected


def test_differences_name_the_dotted_key_and_both_values() -> None:
    ours = RunIdentity({"model": {"id": "x", "classes": ("a", "b")}, "masks": True})
    theirs = RunIdentity({"model": {"id": "y", "classes": ["a", "b"]}})
    assert ours.differences(theirs) == ["masks: None there, True here", "model.id: y there, x here"]
    assert not ours.differences(RunIdentity(ours.as_json()))


def test_older_documents_are_read() -> None:
    assert RunIdentity.read({"answers": {"a": 1}}) == RunIdentity({"a": 1})
    assert RunIdentity.read({"identity": {"a": 1}, "answers": {"a": 2}}) == RunIdentity({"a": 1})
