"""Readers of the files that a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cctmn import tables


def predictions(out: Path) -> dict[str, dict[str, Any]]:
    """Prediction rows by `uri::member::frame`; a slice with two rows fails the test."""
    names = {
        row["slice_id"]: f"{row['uri'].rsplit('/', 1)[1]}::{row['member']}::{row['frame']}"
        for table in tables.inventory((out / "private" / "inventory").as_uri())
        for row in table.to_pylist()
    }
    rows = tables.rows((out / "predictions").as_uri())
    result = {names[row["slice_id"]]: row for row in rows}
    assert len(result) == len(rows), "a slice has two rows"
    return result


def results(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of the slice, without its keys and times."""
    return {k: v for k, v in row.items() if not k.endswith(("_key", "_ms")) and k != "slice_id"}


def manifest(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "manifest.json").read_text()))
