"""The identity of a run: everything that changes its results.

An output folder belongs to one identity. A job with another identity is refused, and the message
names what differs. run.json and manifest.json hold the identity; the manifest also holds its
fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

KEY: Final = "identity"
# Key of a card's description, and name of the file below OUT/private: records of the sets that a
# model was fitted on.
FITTED_ON: Final = "fitted_on"
OLDER_KEY: Final = "answers"  # in run.json and manifest.json of versions before this key


@dataclass(frozen=True)
class RunIdentity:
    """The settings, weights and data that change the results of a run.

    `values` is a nested table of JSON values. Its content, not its order, makes the identity.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> RunIdentity:
        """Return the identity that a run.json or manifest.json holds, of this version or older."""
        return cls(document[KEY] if KEY in document else document.get(OLDER_KEY, {}))

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON reads them back: tuples become lists."""
        return dict(json.loads(json.dumps(self.values)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the values in a fixed order, as 64 hex digits."""
        text = json.dumps(self.values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: RunIdentity) -> list[str]:
        """Return one text per value that differs: its dotted key, the other's value and ours."""
        ours, theirs = _flat(self.as_json()), _flat(other.as_json())
        return [
            f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
            for key in sorted(ours | theirs)
            if ours.get(key) != theirs.get(key)
        ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested table as one table with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: inner_value
        for name, inner in value.items()
        for key, inner_value in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }
