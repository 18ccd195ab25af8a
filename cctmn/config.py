"""Configuration: frozen dataclasses filled from defaults, a TOML file and --set a.b=c.

In: a dataclass, a file, a list of assignments. Out: an instance whose every key is known and whose
every value has the type of its default; anything else is a ConfigError. `fingerprint` condenses
what changes a job's answers, so that a folder is never continued with something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cctmn.errors import ConfigError

C = TypeVar("C")


def _knob(default: Any, text: str, *, low: float | None = None) -> Any:
    """A field with its line of help and the least value that makes sense."""
    return field(default=default, metadata={"help": text, "low": low})


@dataclass(frozen=True)
class ScoreConfig:
    """What a scoring run may be told; 0 means: chosen from the machine and the work."""

    actors: int = _knob(0, "scorer processes; 0 = one a GPU, or one a CPU core", low=0)
    batch_size: int = _knob(0, "slices per forward pass; 0 = 16 on a GPU, 4 on a CPU", low=0)
    block_rows: int = _knob(0, "slices per block of work and commit; 0 = 4 to 128", low=0)
    fetch_threads: int = _knob(16, "reads in flight per fetch task", low=1)
    max_error_rate: float = _knob(0.01, "share of error rows above which the exit code is 3", low=0)
    ranked_boxes: bool = _knob(False, "write the N boxes that the classifier saw (large)")


def load(cls: type[C], *, file: Path | None = None, sets: Sequence[str] = ()) -> C:
    """An instance of the dataclass from its defaults, then the TOML file, then `key=value`s."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not a TOML file ({error})") from None
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write it as key=value")
        target = values
        *parents, last = path.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _parse(value.strip())
    return _fill(cls, values, where="")


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _fill(cls: type[C], values: Mapping[str, Any], *, where: str) -> C:
    assert dataclasses.is_dataclass(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            known = ", ".join(fields)
            raise ConfigError(f"{where}{name}: no such setting; there are {known}")
    checked = {name: _check(fields[name], value, where) for name, value in values.items()}
    return cls(**checked)


def _check(known: dataclasses.Field[Any], value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(known.default):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}{known.name}: is a table; write {known.name}.key=value")
        return _fill(type(known.default), value, where=f"{where}{known.name}.")
    wanted = type(known.default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{where}{known.name}: {value!r} is not of type {wanted.__name__}")
    low = known.metadata.get("low")
    if low is not None and not value >= low:
        raise ConfigError(f"{where}{known.name}: {value!r} is below {low}")
    return value


def fingerprint(answers: Mapping[str, Any]) -> str:
    """SHA-256 of the settings that change answers, in a fixed order."""
    text = json.dumps(answers, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
