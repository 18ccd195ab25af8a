"""Versions of what a score depends on, without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "cctmn",
    "ray",
    "torch",
    "torchvision",
    "pyarrow",
    "pydicom",
    "imagecodecs",
    "pillow",
    "numpy",
)


def libraries() -> dict[str, str]:
    """Installed version by package, "missing" where there is none, and Python's own."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
