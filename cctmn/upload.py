"""What `cctmn submit` uploads: the files that git tracks, and nothing that lies beside them.

A checkout may hold a folder of patients' images. Every user of the cluster can read an upload.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cctmn.errors import ConfigError, InputError

# Ray's dashboard refuses a longer request; images and weights do not get smaller in the zip file.
MAX_BYTES: Final = 100 << 20
# What a file takes in a zip file besides its content.
_ENTRY_BYTES: Final = 300
# Left out of a --working-dir; nothing there is code.
EXCLUDED: Final = frozenset(
    {".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
# In an upload Ray would leave out what they name, although git tracks it.
_RULES: Final = frozenset({".gitignore", ".rayignore"})
PACKAGE: Final = "cctmn"
# Git ignores it, for hatch_build.py compiles it. It does not depend on the version of Python, and a
# node of another platform cannot load it and uses torch.
COMPILED: Final = "cctmn/model/_winograd.so"


@dataclass(frozen=True)
class Upload:
    """A folder that holds exactly what is uploaded, and the script's path below it, if any."""

    folder: str
    script: str | None
    summary: str  # how much it is and what was left out, for the person who submits


@contextmanager
def staged(script: str | None, working_dir: str | None) -> Iterator[Upload]:
    """Copy what is uploaded into a private folder, which is removed afterwards.

    That is all of `working_dir` if there is one; else what git tracks of the checkout that holds
    the script; without git the package, the script and pyproject.toml. Without a script it is this
    package, wherever it is installed. Raises InputError without such a script, ConfigError if git
    does not track it or the upload is too large.
    """
    if working_dir is not None and "://" in working_dir:
        yield Upload(working_dir, script, f"the cluster reads {working_dir}; nothing is uploaded")
        return
    top, inner = _places(script, working_dir)
    names, note = _names(top, inner, whole=working_dir is not None)
    if working_dir is None and (top / COMPILED).is_file():
        names = sorted({*names, COMPILED})
        note += f"; compiled code for {platform.system()} on {platform.machine()}"
    # A link may lead to a folder of images; a submodule is a folder.
    links = {name for name in names if _is_linked(top, name)}
    if links:
        note += f"; {len(links):,} link(s) are left out"
    sizes = {
        name: (top / name).stat().st_size
        for name in names
        if name not in links and Path(name).name not in _RULES and (top / name).is_file()
    }
    _refuse_too_large(sizes)
    with tempfile.TemporaryDirectory(prefix="cctmn-upload-") as folder:
        for name in sizes:
            copy = Path(folder, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(top / name, copy)
        total = sum(sizes.values()) / 1e6
        yield Upload(folder, inner, f"uploading {len(sizes):,} files, {total:,.1f} MB{note}")


def _names(top: Path, script: str | None, *, whole: bool) -> tuple[list[str], str]:
    """Return the files below `top` to upload, and what to say about this choice.

    Raises ConfigError if git does not track the script.
    """
    if whole:
        return sorted(_walk(top)), f"; all of --working-dir but {', '.join(sorted(EXCLUDED))}"
    if tracked := _git(top, "--cached", *([] if script else ["--", PACKAGE])):
        if script and script not in tracked:
            raise ConfigError(
                "git does not track this script, so it is not uploaded; `git add` it, or give "
                "--working-dir",
                script,
            )
        others = _git(top, "--others", "--exclude-standard", "--", "*.py" if script else PACKAGE)
        left = len([name for name in others if name.endswith(".py")])
        note = f"; {left:,} Python file(s) that git does not track are left out" if left else ""
        return tracked, note
    package = [f"{PACKAGE}/{name}" for name in _walk(top / PACKAGE)]
    if script is None:
        return sorted(package), "; the package as it is installed here"
    return (
        sorted({*package, "pyproject.toml", script}),
        "; the package and the script, because this is not a git checkout",
    )


def _places(script: str | None, working_dir: str | None) -> tuple[Path, str | None]:
    """Return the folder whose files are uploaded, and the script's path below it, if any."""
    if script is None:
        top = Path(__file__).absolute().parents[1] if working_dir is None else Path(working_dir)
        if not top.is_dir():
            raise InputError("no such folder; check --working-dir", top)
        return Path(os.path.normpath(top.absolute())), None
    path = Path(script).absolute()
    if working_dir is not None:
        top = Path(working_dir).absolute()
        if not path.is_relative_to(top) or not path.is_file():
            path = top / script
    else:
        above = [p for p in path.parents if (p / "pyproject.toml").is_file()]
        top = above[0] if above else path.parent
    path, top = Path(os.path.normpath(path)), Path(os.path.normpath(top))
    if not path.is_file():
        raise InputError(
            "no such script; give the path of a script, or add --no-upload if the cluster's image "
            "holds it",
            script,
        )
    if not path.is_relative_to(top):
        raise ConfigError("not below --working-dir; give a script that lies in it", script)
    return top, path.relative_to(top).as_posix()


def _git(top: Path, *options: str) -> list[str]:
    """Return the files that `git ls-files` lists below a folder; none without git."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(top), "ls-files", "-z", *options]
    try:
        done = subprocess.run(command, capture_output=True, check=True, env=own)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return []
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _walk(top: Path) -> Iterator[str]:
    """Yield the files and links below a folder; no link is followed."""
    for folder, inner, files in os.walk(top):
        linked = [name for name in inner if Path(folder, name).is_symlink()]
        inner[:] = [name for name in inner if name not in EXCLUDED and name not in linked]
        for name in [*files, *linked]:
            if name not in EXCLUDED:
                yield Path(folder, name).relative_to(top).as_posix()


def _is_linked(top: Path, name: str) -> bool:
    """Return whether a file, or a folder above it, is a link."""
    path = Path(name)
    inner = [p for p in path.parents if p != Path()]
    return any((top / p).is_symlink() for p in (path, *inner))


def _refuse_too_large(sizes: dict[str, int]) -> None:
    total = sum(sizes.values()) + _ENTRY_BYTES * len(sizes)
    if total < MAX_BYTES:
        return
    folders: Counter[str] = Counter()
    for name, size in sizes.items():
        folders[name.split("/", 1)[0]] += size
    listed = [*folders.most_common(1), *Counter(sizes).most_common(2)]
    raise ConfigError(
        f"the upload has {total / 2**20:,.0f} MiB and a cluster takes {MAX_BYTES >> 20}; leave out "
        "its largest files, or put them on storage that the nodes can read",
        names=", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in dict(listed).items()),
    )
