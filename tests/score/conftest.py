"""A real Ray cluster for a module, and what a run left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn import runtime, tables


@pytest.fixture(scope="module")
def cluster(s3: object) -> Iterator[str]:
    """Address of a Ray of this module, with the S3 server in its environment.

    The test process is connected to it, so that runs share worker processes: to start those costs
    more here than the work of most tests.
    """
    import ray

    with runtime.session():
        yield ray.get_runtime_context().gcs_address


def predictions(out: Path) -> dict[str, dict[str, Any]]:
    """Prediction rows by `uri::member::frame`; a slice with two rows fails the test."""
    names = {
        row["slice_id"]: f"{row['uri'].rsplit('/', 1)[1]}::{row['member']}::{row['frame']}"
        for table in tables.inventory((out / "private" / "inventory").as_uri())
        for row in table.to_pylist()
    }
    rows = tables.rows((out / "predictions").as_uri())
    found = {names[row["slice_id"]]: row for row in rows}
    assert len(found) == len(rows), "a slice has two rows"
    return found


def results(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of the slice, without its keys and times."""
    return {k: v for k, v in row.items() if not k.endswith(("_key", "_ms")) and k != "slice_id"}


def manifest(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "manifest.json").read_text()))
