"""Counters of a scoring run, for the metrics endpoint of every Ray node.

They have the id of the run, and tags for codes and stages; they hold nothing of a slice. A block
that is repeated after a lost node is counted again, so the counter minus the rows is the repeated
work.
"""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cctmn.errors import state_of

# Ray puts "ray_" before the names and "_total" after those of counters.
SLICES: Final = "cctmn_slices"
ERRORS: Final = "cctmn_error_rows"
STAGE_MS: Final = "cctmn_stage_ms"
BYTES: Final = "cctmn_fetched_bytes"
LOADING: Final = "loading the model"
SCORING: Final = "scoring the first slices"
_STAGE: Final = "cctmn.stage."
BOUNDARIES_MS: Final = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]


def prepared(todo: pa.Table, table: pa.Table, *, elapsed_s: float, run: str) -> None:
    """Count a block that was fetched and decoded: todo are its inventory rows."""
    meters = _meters()
    decode_ms = table["t_decode_ms"].to_pylist()
    for value in decode_ms:
        meters["stage"].observe(value, tags={"run": run, "stage": "decode"})
    # reads run in parallel, so only the mean time of a slice of the block is known
    share_ms = max(0.0, 1e3 * elapsed_s - sum(decode_ms)) / max(1, len(decode_ms))
    for _ in decode_ms:
        meters["stage"].observe(share_ms, tags={"run": run, "stage": "fetch"})
    read = todo.filter(pc.equal(todo["error_code"], ""))
    # frames of one object are fetched together
    objects = read.group_by(["uri", "offset"]).aggregate([("packed_size", "max")])
    if read_bytes := pc.sum(objects["packed_size_max"]).as_py():  # Ray refuses to count nothing
        meters["bytes"].inc(read_bytes, tags={"run": run})


def scored(table: pa.Table, *, run: str) -> None:
    """Count a block of prediction rows."""
    meters = _meters()
    codes = Counter(table["error_code"].to_pylist())
    for code, count in codes.items():
        meters["slices"].inc(count, tags={"run": run, "outcome": state_of(code)})
        if state_of(code) == "error":
            meters["errors"].inc(count, tags={"run": run, "code": code})
    scores = table.filter(pc.equal(table["error_code"], ""))["t_score_ms"].to_pylist()
    for value in scores:
        meters["stage"].observe(value, tags={"run": run, "stage": "score"})


def reached(stage: str, *, run: str) -> None:
    """Let the driver know what the scorers of a run do; the last word stays."""
    from ray.experimental.internal_kv import _internal_kv_put

    with suppress(Exception):  # it is for the progress line alone
        _internal_kv_put(_STAGE + run, stage, overwrite=True)


def stage(run: str) -> str:
    """Return what the scorers of a run do, an empty text while there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    with suppress(Exception):  # it is for the progress line alone
        return (_internal_kv_get(_STAGE + run) or b"").decode()
    return ""


@functools.cache
def _meters() -> dict[str, Any]:
    """Return the meters of this process; Ray warns if a name is used twice."""
    from ray.util.metrics import Counter as Count
    from ray.util.metrics import Histogram

    return {
        "slices": Count(SLICES, "Slices that ended as a row, by outcome", ("run", "outcome")),
        "errors": Count(ERRORS, "Error rows by code", ("run", "code")),
        "bytes": Count(BYTES, "Bytes of objects and members that were read", ("run",)),
        "stage": Histogram(
            STAGE_MS, "Time of a slice in a stage, ms", BOUNDARIES_MS, ("run", "stage")
        ),
    }
