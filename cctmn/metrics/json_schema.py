"""Parts of a JSON Schema from which the schema of metrics.json is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

COUNT: Final = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Final = {"type": ["integer", "null"], "minimum": 0}
NUMBER_OR_NULL: Final = {"type": ["number", "null"]}
TEXT: Final = {"type": "string"}
TEXT_OR_NULL: Final = {"type": ["string", "null"]}
COUNTS: Final = {"type": "object", "additionalProperties": COUNT}
TEXTS: Final = {"type": "array", "items": TEXT}


def object_of(
    description: str, properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the schema of an object with these keys alone."""
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
