"""Names of objects: local paths and URIs, turned into one another without touching storage.

Inside the package every object has a URI. A local path becomes `file:///...`, percent-encoded, so
that bytes that are not UTF-8 survive; a URI with another scheme (`s3://bucket/key`) stays as it is.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

WILDCARDS: Final = "*?["
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ALIASES: Final = {"s3a": "s3", "s3n": "s3"}  # Hadoop's names


def scheme(text: str) -> str:
    """Return the scheme of a URI, such as "s3"; a plain path has the scheme "file"."""
    match = _SCHEME.match(text)
    name = match[1].lower() if match else "file"
    return _ALIASES.get(name, name)


def to_uri(text: str) -> str:
    """Return the absolute URI of a local path; a URI of another storage stays unchanged."""
    if (name := scheme(text)) != "file":
        return name + text[text.index("://") :]
    path = os.fsdecode(unquote_to_bytes(text[7:])) if _SCHEME.match(text) else text
    # Unlike that of pathlib, it leaves "~$x.png" alone: Office names its lock files like that.
    absolute = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111
    return "file://" + quote(os.fsencode(os.path.normpath(absolute)))


def to_path(uri: str) -> Path:
    """Return the local path of a file:// URI."""
    assert uri.startswith("file://"), uri
    return Path(os.fsdecode(unquote_to_bytes(uri[7:])))


def display(uri: str) -> str:
    """Return the URI as a person writes it: a local file as its path, without percent signs."""
    return str(to_path(uri)) if uri.startswith("file://") else uri


def is_absolute(text: str) -> bool:
    """Return whether the name means the same object in every working directory."""
    return text.startswith(("/", "file:///")) or scheme(text) != "file"


def join(uri: str, *parts: str) -> str:
    """Return the URI of an object below another."""
    return "/".join([uri.rstrip("/"), *parts])


def below(root: str, name: str) -> str:
    """Return the URI of a name: its own if it is absolute, else below `root`, a path or URI."""
    if is_absolute(name) or name.startswith(("file://", "~")):
        return to_uri(name)
    if scheme(root) != "file":
        prefix, _, rest = root.partition("://")
        return f"{prefix}://" + posixpath.normpath(posixpath.join(rest, name))
    return to_uri(str(to_path(to_uri(root)) / name))


def parent(text: str) -> str:
    """Return the URI of the folder that holds a path or URI."""
    return to_uri(text).rpartition("/")[0] + "/"


def relative(uri: str, base: str) -> str:
    """Return the readable name of an object relative to a folder; "" for the folder itself."""
    tail = uri.removeprefix(base.rstrip("/")).removeprefix("/")
    return os.fsdecode(unquote_to_bytes(tail)) if uri.startswith("file://") else tail
