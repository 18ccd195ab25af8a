"""The machinery of settings: declare one, list them, and read their values with checks.

A setting is a field of a frozen dataclass that `setting` declares. `describe` lists all settings of
a dataclass by dotted keys. `replace` sets one of them, and raises a ConfigError that says what is
allowed or which key is nearest. This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cctmn.errors import ConfigError

C = TypeVar("C")


def setting(
    default: Any,
    help: str,  # noqa: A002 - the field's word, as in argparse and click
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Return a dataclass field that carries its help, its unit and the values it accepts."""
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One setting as a user sees it."""

    key: str  # dotted, as --set takes it
    type: str  # a value of TYPES
    default: Any
    help: str
    unit: str  # "" if it has none
    low: float | None
    high: float | None
    choices: tuple[str, ...] | None

    @property
    def allowed(self) -> str:
        """The values that the setting accepts, in words."""
        if self.choices is not None:
            return " | ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.type}, {self.low:g} to {self.high:g}"
        return self.type if self.low is None else f"{self.type}, at least {self.low:g}"


TYPES: Final[Mapping[type, str]] = {
    int: "integer",
    float: "number",
    bool: "true | false",
    str: "text",
    tuple: "names, comma-separated",
}


def describe(settings: type[Any] | Any) -> list[Setting]:
    """List the settings of a dataclass in its order, tables such as `optim` by dotted keys.

    An instance in place of the class gives that instance's values as `default`.
    """
    instance = settings() if isinstance(settings, type) else settings
    return [
        Setting(key, TYPES[type(default)], default, **known.metadata)
        for key, known, default in _leaves(instance)
    ]


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    for known in dataclasses.fields(settings):
        value = getattr(settings, known.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{known.name}.")
        else:
            yield f"{prefix}{known.name}", known, value


def to_text(value: Any) -> str:
    """Write a value as `--set` takes it; an empty text as two quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def parse(text: str) -> Any:
    """Read a value as TOML; text that is not TOML is a bare word."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables by dotted keys; an empty table has none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def replace(settings: C, key: str, value: Any, *, command: str, where: str) -> C:
    """Return `settings` with the checked value at a dotted key.

    `command` is the name that `cctmn settings` takes, `where` is where the value was written; both
    are for the ConfigError of a key or value that is not valid.
    """
    known = {setting.key: setting for setting in describe(settings)}
    if key not in known:
        if any(other.startswith(f"{key}.") for other in known):
            raise ConfigError(f"{where}{key}: is a table; write {key}.KEY=value")
        raise ConfigError(
            f"{where}{key}: no such setting{nearest(key, known)}; "
            f"`cctmn settings {command}` lists all"
        )
    checked = check(known[key], value, where=where)
    *tables, last = key.split(".")
    holders: list[Any] = [settings]
    for table in tables:
        holders.append(getattr(holders[-1], table))
    for holder, name in zip(reversed(holders), [last, *reversed(tables)], strict=True):
        checked = dataclasses.replace(holder, **{name: checked})
    return checked


def check(setting: Setting, value: Any, *, where: str) -> Any:
    """Return the value in the setting's type. Raises ConfigError if it is not allowed."""
    name, wanted = f"{where}{setting.key}", type(setting.default)
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple:
        value = tuple(value.split(",")) if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(type(item) is str for item in value):
            raise ConfigError(
                f"{name}: {value!r} is not a list of names; write {setting.key}=one,two"
            )
        return tuple(value)
    hint = f"allowed: {setting.allowed}"
    if type(value) is not wanted:
        raise ConfigError(f"{name}: {value!r} is not of type {wanted.__name__}; {hint}")
    # written so that nan is refused too
    if setting.low is not None and not value >= setting.low:
        raise ConfigError(f"{name}: {value!r} is below {setting.low:g}; {hint}")
    if setting.high is not None and not value <= setting.high:
        raise ConfigError(f"{name}: {value!r} is above {setting.high:g}; {hint}")
    if setting.choices is not None and value not in setting.choices:
        raise ConfigError(f"{name}: {value!r} is unknown; {hint}{nearest(value, setting.choices)}")
    return value


def nearest(name: str, known: Collection[str]) -> str:
    """Return "; did you mean X?" for the nearest name, or "" if none is near.

    A dotted key is also found by its last part: `lr` finds `optim.lr`.
    """
    by_name = {key.rpartition(".")[2]: key for key in known} | {key: key for key in known}
    near = difflib.get_close_matches(name, by_name, n=1) or difflib.get_close_matches(
        name.rpartition(".")[2], by_name, n=1
    )
    return f"; did you mean {by_name[near[0]]}?" if near else ""
