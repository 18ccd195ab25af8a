"""The verdict on each criterion of an acceptance test, and on all of them together.

A subgroup of fewer patients than the criteria file states is not judged, and neither its values nor
its size are shown. Numbers of further subgroups are withheld where they would give away a metric of
fewer than ten patients, as with cohorts (`disclosure.py`); their verdicts stay.

Reads: criteria and observations.
Writes: the rows of acceptance.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cctmn.evaluate.criteria import Criteria, Criterion
from cctmn.evaluate.disclosure import FEWEST_PATIENTS, publishable
from cctmn.evaluate.observations import Observations
from cctmn.metrics import binary
from cctmn.metrics.binary import BinarySample, Conditions

ACCEPTED: Final = "pass"
FAIL: Final = "fail"
TOO_FEW: Final = "too few patients"
NUMBERS: Final = ("value", "bound", "patients", "slices")

# The observations of each subgroup, by its values of the columns.
Subgroups = Mapping[tuple[str, ...], NDArray[np.bool_]]


def judge(criteria: Criteria, observed: Observations, *, at: Conditions) -> list[dict[str, Any]]:
    """Return one row per criterion, or per subgroup of it, in the order of the file."""
    everybody_N = np.ones_like(observed.sample.positive_N)
    subgroups: dict[tuple[str, ...], Subgroups] = {(): {(): everybody_N}}
    judged: list[_Judged] = []
    for i, criterion in enumerate(criteria.criteria, start=1):
        columns = criterion.columns
        if columns not in subgroups:
            keys = observed.subgroups(columns, where=f"criteria[{i}].by", place=criteria.place)
            subgroups[columns] = {
                values: np.array([key == values for key in keys], np.bool_)
                for values in sorted(set(keys))
            }
        judged += _rows(
            criterion,
            subgroups[columns],
            sample=observed.sample,
            fewest=criteria.rules.fewest_patients,
            at=at,
        )
    _withhold(judged, list(subgroups.values()), observed=observed)
    return [one.row for one in judged]


def overall(rows: Sequence[dict[str, Any]]) -> str:
    """Return fail if one row fails, else too few patients if a row has too few, else pass."""
    found = {row["verdict"] for row in rows}
    return next(verdict for verdict in (FAIL, TOO_FEW, ACCEPTED) if verdict in found)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A row, and the observations that its numbers are computed from."""

    row: dict[str, Any]
    in_N: NDArray[np.bool_]

    def sums(self, positive_N: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Return the groups of observations about whom the numbers say something."""
        metric = self.row["metric"]
        if metric == "accuracy":
            return [self.in_N]
        if metric == "sensitivity":
            return [self.in_N & positive_N]
        if metric == "specificity":
            return [self.in_N & ~positive_N]
        return [self.in_N & positive_N, self.in_N & ~positive_N]


def _rows(
    criterion: Criterion,
    subgroups: Subgroups,
    *,
    sample: BinarySample,
    fewest: int,
    at: Conditions,
) -> Iterator[_Judged]:
    hidden = 0
    for values, in_N in subgroups.items():
        part = sample.part(in_N)
        if criterion.by and part.patients < fewest:
            hidden += 1
            continue
        yield _Judged(_row(criterion, part, values=values, fewest=fewest, at=at), in_N)
    if hidden:
        reason = f"fewer than {fewest:,} patients each"
        shown = (f"{hidden} more", *[""] * (len(criterion.columns) - 1))
        row = _described(criterion, values=shown) | _unjudged(reason) | {"hidden": True}
        yield _Judged(row, np.zeros_like(sample.positive_N))


def _withhold(
    judged: Sequence[_Judged], subgroups: Sequence[Subgroups], *, observed: Observations
) -> None:
    """Remove the numbers of rows from which those of few patients would follow."""
    sample = observed.sample
    cells = [one for one in judged if one.row["by"] and one.row["verdict"] != TOO_FEW]
    if not cells:
        return
    positive_N = sample.positive_N
    sums = [(i, of_N) for i, one in enumerate(cells) for of_N in one.sums(positive_N)]
    protected = _few(subgroups, observed)
    shown_S = publishable(
        np.array([*(of_N for _, of_N in sums), *protected]),
        always_TN=np.array([np.ones_like(positive_N), positive_N, ~positive_N]),
        group_N=sample.group_N,
        known_N=observed.known_N,
    )
    for i in {i for (i, _), shown in zip(sums, shown_S[: len(sums)], strict=True) if not shown}:
        row = cells[i].row
        row |= dict.fromkeys(NUMBERS)
        few = f"fewer than {FEWEST_PATIENTS} patients"
        row["reason"] += f"; numbers withheld: those of {few} would follow"


def _few(subgroups: Sequence[Subgroups], observed: Observations) -> list[NDArray[np.bool_]]:
    """Return the groups of fewer than ten patients whose numbers must not follow from others.

    They are the small subgroups, and all small ones together inside a larger subgroup: the rest of
    it without the others.
    """
    positive_N = observed.sample.positive_N
    found: dict[bytes, NDArray[np.bool_]] = {}

    def is_few(of_N: NDArray[np.bool_]) -> bool:
        known = observed.sample.group_N[of_N & observed.known_N]
        return bool(of_N.any()) and len(np.unique(known)) < FEWEST_PATIENTS

    wholes = [in_N for cells in subgroups for in_N in cells.values()]
    for of_N in (np.ones_like(positive_N), positive_N, ~positive_N):
        for cells in subgroups:
            few = [part_N for in_N in cells.values() if is_few(part_N := in_N & of_N)]
            for whole_N in wholes:
                inside = [part_N for part_N in few if not (part_N & ~whole_N).any()]
                rest_N = np.any([np.zeros_like(positive_N), *inside], axis=0)
                found |= {one.tobytes(): one for one in (*inside, rest_N) if is_few(one)}
    return list(found.values())


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
        whom = {"sensitivity": " with it", "specificity": " without it", "accuracy": ""}
        text = whom.get(criterion.metric, " with it, or without it")
        return described | _unjudged(f"fewer than {fewest:,} patients{text}")
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
    return dict.fromkeys(NUMBERS) | {"verdict": TOO_FEW, "reason": reason}


def _finite(value: float) -> float | None:
    """Return a finite number, None for an infinite ratio or a value that is not defined."""
    return value if math.isfinite(value) else None
