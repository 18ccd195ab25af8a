"""The criteria file of an acceptance test: bounds that metrics must reach, fixed before the test.

The file is TOML and is read strictly: a key that is unknown, missing or out of range stops the
command with one line that names the file and the key.

Reads: the criteria file, local or on S3.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cctmn import store
from cctmn.classes import JOIN_KEYS
from cctmn.errors import ConfigError
from cctmn.evaluate.disclosure import FEWEST_PATIENTS
from cctmn.metrics.binary import NAMES, RATIOS, SMALLER_IS_BETTER
from cctmn.settings import check, describe, nearest, setting, to_text

T = TypeVar("T")

ANY_DISEASE: Final = "any"
# The default of a number that a file may leave out and that then plays no part.
_NONE: Final = math.nan


@dataclass(frozen=True)
class Rules:
    """The keys at the top of the file."""

    title: str = setting("Acceptance test", "Title of the page.")
    prevalence: float = setting(
        _NONE,
        "Fraction of patients (or slices) with the disease where the model will be used; for ppv, "
        "npv and the decision curve.",
        low=0.0001,
        high=0.9999,
    )
    level: float = setting(0.95, "Confidence level.", low=0.8, high=0.999)
    sided: str = setting(
        "two",
        "two = the bound is an end of the two-sided interval of that level; one = it is the "
        "one-sided bound.",
        choices=("two", "one"),
    )
    fewest_patients: int = setting(
        FEWEST_PATIENTS,
        "A metric that is computed from fewer patients is not judged: too few patients.",
        unit="patients",
        low=FEWEST_PATIENTS,
    )

    @property
    def two_sided_level(self) -> float:
        """The level of the two-sided interval whose ends are the bounds."""
        return self.level if self.sided == "two" else 2 * self.level - 1


@dataclass(frozen=True)
class OperatingPoint:
    """The table [operating_point]: what is judged, and from which probability it is positive."""

    unit: str = setting(
        "patient", "What a probability is of; a slice needs labels of slices.",
        choices=("patient", "slice"),
    )  # fmt: skip
    positive: str = setting(ANY_DISEASE, "The class to detect; any = any disease.")
    threshold: float = setting(_NONE, "A probability of at least this is positive.", low=0, high=1)
    sensitivity: float = setting(
        _NONE,
        "In place of threshold: the highest threshold that reaches this sensitivity on validation "
        "data is used.",
        low=0.01,
        high=1,
    )
    out: str = setting(
        "", "With sensitivity: output folder of `cctmn score` for the validation data."
    )
    labels: str = setting("", "With sensitivity: labels of the validation data.")
    key: str = setting("name", "With sensitivity: column that joins the two.", choices=JOIN_KEYS)
    root: str = setting("", "With sensitivity: base folder or prefix for relative URIs in labels.")

    @property
    def is_chosen(self) -> bool:
        """Whether the threshold is chosen on validation data."""
        return not math.isnan(self.sensitivity)


@dataclass(frozen=True)
class Criterion:
    """A table [[criteria]]: a metric and the bound that it must reach."""

    metric: str = setting("", "Metric.", choices=tuple(NAMES))
    at_least: float = setting(
        _NONE, "The lower confidence bound must be at least this; every metric but lr_negative.",
        low=0,
    )  # fmt: skip
    at_most: float = setting(
        _NONE, "The upper confidence bound must be at most this; lr_negative only.", low=0
    )
    by: str = setting(
        "",
        "Columns of labels or predictions, comma-separated; every subgroup must reach the bound.",
    )

    @property
    def limit(self) -> float:
        """The bound to reach."""
        return self.at_most if self.metric in SMALLER_IS_BETTER else self.at_least

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that define subgroups; none for all patients together."""
        return tuple(part.strip() for part in self.by.split(",")) if self.by else ()


@dataclass(frozen=True)
class Criteria:
    """A criteria file."""

    place: str
    sha256: str
    rules: Rules
    point: OperatingPoint
    criteria: tuple[Criterion, ...]

    def below(self, place: str) -> str:
        """Return the URI of a path in the file, which is relative to the folder of the file."""
        return store.below(store.parent(self.place), place)


TABLES: Final[Mapping[str, type[Any]]] = {
    "": Rules,
    "operating_point": OperatingPoint,
    "criteria": Criterion,
}


def read_criteria(place: str) -> Criteria:
    """Read and check a criteria file. Raises ObjectError or ConfigError."""
    data = store.read_all(store.to_uri(place), hint="give a criteria file (.toml)")
    try:
        content = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file ({error}); correct it", place) from None
    point, listed = content.pop("operating_point", None), content.pop("criteria", None)
    if not isinstance(point, dict):
        raise ConfigError("operating_point: missing; write a table [operating_point]", place)
    if not isinstance(listed, list) or not listed:
        raise ConfigError("criteria: missing; write a table [[criteria]] per criterion", place)
    others = [name for name in TABLES if name]
    criteria = Criteria(
        place=place,
        sha256=hashlib.sha256(data).hexdigest(),
        rules=_filled(Rules, content, place=place, required=["prevalence"], others=others),
        point=_filled(OperatingPoint, point, place=place, prefix="operating_point."),
        criteria=tuple(
            _filled(Criterion, one, place=place, prefix=f"criteria[{i}].", required=["metric"])
            for i, one in enumerate(listed, start=1)
        ),
    )
    _check_point(point, place=place)
    for i, (criterion, written) in enumerate(zip(criteria.criteria, listed, strict=True), start=1):
        _check_bound(criterion, written, name=f"criteria[{i}]", place=place)
    return criteria


def markdown() -> str:
    """Return the keys of a criteria file as a Markdown table."""
    lines = ["| Key | Default | Allowed | Meaning |", "|---|---|---|---|"]
    for table, cls in TABLES.items():
        for one in describe(cls):
            allowed = one.allowed.replace(" | ", ", ")
            given = one.default not in ("", _NONE) and one.default == one.default
            default = f"`{to_text(one.default)}`" if given else "-"
            key = f"{table}.{one.key}" if table else one.key
            lines.append(f"| `{key}` | {default} | {allowed} | {one.help} |")
    return "\n".join(lines) + "\n"


def _filled(
    cls: type[T],
    written: Any,
    *,
    place: str,
    prefix: str = "",
    required: Sequence[str] = (),
    others: Sequence[str] = (),
) -> T:
    """Return the dataclass with the written values; `others` are names of further tables."""
    if not isinstance(written, dict):
        message = f"{prefix.rstrip('.')}: not a table; write [[criteria]] above its keys"
        raise ConfigError(message, place)
    known = {one.key: one for one in describe(cls)}
    for key in written:
        if key not in known:
            listed = ", ".join([*known, *others])
            close = nearest(key, [*known, *others])
            raise ConfigError(f"{prefix}{key}: unknown key{close}; known: {listed}", place)
    for key in required:
        if key not in written:
            raise ConfigError(f"{prefix}{key}: missing; add it ({known[key].allowed})", place)
    try:
        values = {key: check(known[key], value, where=prefix) for key, value in written.items()}
    except ConfigError as error:
        raise ConfigError(error.text, place) from None
    return cls(**values)


def _check_point(written: Mapping[str, Any], *, place: str) -> None:
    """Raise ConfigError unless there is either a threshold or all that is needed to choose one."""
    given, chosen = "threshold" in written, "sensitivity" in written
    if given == chosen:
        raise ConfigError(
            "operating_point: needs either threshold or sensitivity; write one of them", place
        )
    for key in ("out", "labels"):
        if chosen and not written.get(key):
            raise ConfigError(
                f"operating_point.{key}: missing; the threshold is chosen on validation data, add "
                "it",
                place,
            )
    for key in ("out", "labels", "key", "root"):
        if given and key in written:
            raise ConfigError(
                f"operating_point.{key}: is for a threshold that is chosen by sensitivity; leave "
                "it out",
                place,
            )


def _check_bound(
    criterion: Criterion, written: Mapping[str, Any], *, name: str, place: str
) -> None:
    """Raise ConfigError unless the criterion has the bound of its metric, in the metric's range."""
    smaller = criterion.metric in SMALLER_IS_BETTER
    wanted, other = ("at_most", "at_least") if smaller else ("at_least", "at_most")
    if other in written:
        raise ConfigError(f"{name}.{other}: not for {criterion.metric}; write {wanted}", place)
    if wanted not in written:
        raise ConfigError(f"{name}.{wanted}: missing; add the bound to reach", place)
    if criterion.metric not in RATIOS and not criterion.limit <= 1:
        raise ConfigError(
            f"{name}.{wanted}: {criterion.limit:g} is above 1; write a fraction, such as 0.9", place
        )
    if not math.isfinite(criterion.limit):
        raise ConfigError(f"{name}.{wanted}: not a finite number; write one", place)
    if "" in criterion.columns:
        raise ConfigError(f"{name}.by: an empty name; separate columns by one comma", place)
