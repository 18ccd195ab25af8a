"""The verdict on each criterion of an acceptance test, and on all of them together.

A subgroup of fewer patients than the criteria file states is not judged, and neither its values nor
its size are shown, as with cohorts.

Reads: criteria and observations.
Writes: the rows of acceptance.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from cctmn.evaluate.criteria import Criteria, Criterion
from cctmn.evaluate.observations import Observations
from cctmn.metrics import binary
from cctmn.metrics.binary import BinarySample, Conditions

ACCEPTED: Final = "pass"
FAIL: Final = "fail"
TOO_FEW: Final = "too few patients"


def judge(criteria: Criteria, observed: Observations, *, at: Conditions) -> list[dict[str, Any]]:
    """Return one row per criterion, or per subgroup of it, in the order of the file."""
    return [
        row
        for i, criterion in enumerate(criteria.criteria, start=1)
        for row in _rows(criterion, criteria, observed, where=f"criteria[{i}].by", at=at)
    ]


def overall(rows: Sequence[dict[str, Any]]) -> str:
    """Return fail if one row fails, else too few patients if a row has too few, else pass."""
    found = {row["verdict"] for row in rows}
    return next(verdict for verdict in (FAIL, TOO_FEW, ACCEPTED) if verdict in found)


def _rows(
    criterion: Criterion, criteria: Criteria, observed: Observations, *, where: str, at: Conditions
) -> Iterator[dict[str, Any]]:
    fewest = criteria.rules.fewest_patients
    if not criterion.by:
        yield _row(criterion, observed.sample, values=(), fewest=fewest, at=at)
        return
    keys = observed.subgroups(criterion.columns, where=where, place=criteria.place)
    hidden = 0
    for values in sorted(set(keys)):
        part = observed.sample.part(np.array([key == values for key in keys], np.bool_))
        if part.patients < fewest:
            hidden += 1
            continue
        yield _row(criterion, part, values=values, fewest=fewest, at=at)
    if hidden:
        reason = f"fewer than {fewest:,} patients each"
        shown = (f"{hidden} more", *[""] * (len(criterion.columns) - 1))
        yield _described(criterion, values=shown) | _unjudged(reason) | {"hidden": True}


def _row(
    criterion: Criterion,
    sample: BinarySample,
    *,
    values: Sequence[str],
    fewest: int,
    at: Conditions,
) -> dict[str, Any]:
    described = _described(criterion, values=values)
    measured = binary.estimate(sample, criterion.metric, at=at)
    smaller = criterion.metric in binary.SMALLER_IS_BETTER
    bound = measured.high if smaller else measured.low
    if measured.fewest < fewest:
        return described | _unjudged(f"computed from fewer than {fewest:,} patients")
    if bound is None or math.isnan(bound):
        return described | _unjudged("too few patients for an interval")
    passed = bound <= criterion.limit if smaller else bound >= criterion.limit
    end, beyond = ("upper", "above") if smaller else ("lower", "below")
    relation = "reaches" if passed else f"is {beyond}"
    return described | {
        "value": _finite(measured.value),
        "bound": _finite(bound),
        "patients": measured.patients,
        "slices": measured.slices,
        "verdict": ACCEPTED if passed else FAIL,
        "reason": f"the {end} bound {relation} the required value",
    }


def _described(criterion: Criterion, *, values: Sequence[str]) -> dict[str, Any]:
    smaller = criterion.metric in binary.SMALLER_IS_BETTER
    return {
        "metric": criterion.metric,
        "by": list(criterion.columns),
        "values": list(values),
        "hidden": False,
        "at_most" if smaller else "at_least": criterion.limit,
    }


def _unjudged(reason: str) -> dict[str, Any]:
    numbers = dict.fromkeys(("value", "bound", "patients", "slices"))
    return numbers | {"verdict": TOO_FEW, "reason": reason}


def _finite(value: float) -> float | None:
    """Return a finite number, None for an infinite ratio or a value that is not defined."""
    return value if math.isfinite(value) else None
