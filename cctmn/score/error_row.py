"""The prepared row of a slice that cannot be scored.

It is apart from `decode_rows` so that the process that fetches need not import the decoders.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]  # a row of schema.INVENTORY, or of prepare.PREPARED


def error_row(row: Row, code: str) -> Row:
    """Return the prepared row of a slice that cannot be scored."""
    return {
        "slice_id": row["slice_id"],
        "frame": row["frame"],
        "flags": row["flags"],
        "error_code": code,
        "t_decode_ms": 0.0,
        "pixels": b"",
        "input_rows": 0,
        "input_cols": 0,
        "to_stored": [],
    }
