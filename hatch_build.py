"""Compiles winograd.c while the package is built or installed, where a C compiler is present.

Without one the package works as well: its model then runs on torch alone, and slower.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "cctmn/model/winograd.c"
LIBRARY = "cctmn/model/_winograd.so"
OPTIONS = ["-O3", "-shared", "-fPIC", "-Wno-psabi"]
# A function per kind of processor needs glibc and GCC, or a recent clang; else one for all.
VARIANTS = (["-DCLONES"], [])


class CustomBuildHook(BuildHookInterface[Any]):
    """The hook that hatchling calls before it builds a wheel, editable ones too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile the library and add it to the wheel, which then is for this platform alone."""
        if self.target_name != "wheel":
            return
        library = Path(self.root, LIBRARY)
        if not compiled(Path(self.root, SOURCE), library):
            self.app.display_warning("winograd.c was not compiled; cctmn will use torch alone")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compiled(source: Path, library: Path) -> bool:
    """Compile the source; without a compiler, or if it fails, remove the library."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    made = library.with_suffix(f".{os.getpid()}")
    for variant in VARIANTS if compiler else ():
        command = [compiler, *OPTIONS, *variant, "-o", str(made), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:  # noqa: S603
            made.replace(library)
            return True
    made.unlink(missing_ok=True)
    library.unlink(missing_ok=True)
    return False
