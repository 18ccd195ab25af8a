"""Imports run one way, and heavy packages live in their own rooms alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A room may import from rooms of a higher level number only; rooms of one level are siblings.
LEVELS = {
    "cli": 0,
    "jobs": 0,
    "demo": 1,
    "report": 2,
    "train": 3,
    "score": 3,
    "evaluate": 3,
    "view": 3,
    "metrics": 4,
    "data": 4,
    "phantom": 3,
    "studies": 4,
    "study_rows": 4,
    "spreadsheet": 4,
    "runtime": 4,
    "upload": 5,
    "dashboard": 5,
    "embedded": 5,
    "submit": 4,
    "read": 5,
    "model": 5,
    "store": 6,
    "contract": 6,
    "pseudonym": 7,
    "acquisition": 7,
    "rle": 7,
    "config": 6,
    "settings": 6,
    "folder": 5,
    "lease": 5,
    "tables": 5,
    "user_table": 6,
    "errors": 7,
    "schema": 7,
    "classes": 7,
    "identity": 7,
    "numerics": 7,
    "id_set": 7,
    "parallel": 7,
    "partition": 7,
    "reporter": 7,
    "versions": 7,
}
SIBLINGS_ALLOWED = {
    ("jobs", "cli"),
    ("studies", "metrics"),
    ("studies", "study_rows"),
    ("config", "settings"),
    ("folder", "lease"),
    ("user_table", "store"),
}

# package -> the files or folders that alone may import it
HOMES = {
    "ray": (
        "cctmn/embedded.py",
        "cctmn/runtime.py",
        "cctmn/score/pipeline.py",
        "cctmn/score/gpu_failures.py",
        "cctmn/score/meters.py",
        "cctmn/score/remote_index.py",
        "cctmn/submit.py",
        "cctmn/train/distributed.py",
    ),
    "boto3": ("cctmn/store/",),
    "botocore": ("cctmn/store/",),
    "click": ("cctmn/cli/", "jobs/"),
    "tensorboardX": ("cctmn/train/",),
    "torch": (
        "cctmn/model/",
        "cctmn/score/models.py",
        "cctmn/score/masks.py",
        "cctmn/score/doctor.py",
        "cctmn/train/",
        "jobs/benchmarks/",
    ),
    "torchvision": ("cctmn/model/", "cctmn/train/"),
    "pydicom": ("cctmn/read/", "cctmn/data/", "cctmn/phantom/", "jobs/benchmarks/"),
    "imagecodecs": ("cctmn/read/", "cctmn/data/", "cctmn/phantom/", "jobs/benchmarks/"),
    "PIL": ("cctmn/read/", "cctmn/view/", "cctmn/data/", "cctmn/phantom/"),
    "pycocotools": ("cctmn/metrics/", "cctmn/rle.py"),
    "matplotlib": ("cctmn/report/",),
    "jinja2": ("cctmn/report/",),
    "openpyxl": ("cctmn/spreadsheet.py",),
}
SOURCES = sorted([*ROOT.glob("cctmn/**/*.py"), *ROOT.glob("jobs/**/*.py")])


def imported(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Names that a file imports: anywhere in it, or by the statements of the module alone."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "jobs" else parts[1]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_run_one_way() -> None:
    offenders = []
    for path in SOURCES:
        own = room(path)
        if own == "__init__":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "cctmn" or len(parts) == 1 or parts[1] in ("__version__", own):
                continue
            if LEVELS[own] >= LEVELS[parts[1]] and (own, parts[1]) not in SIBLINGS_ALLOWED:
                offenders.append(f"{name_of(path)} imports {name}")
    assert not offenders


def test_each_package_is_imported_where_it_is_allowed() -> None:
    offenders = []
    for path in SOURCES:
        for name in imported(path):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and not name_of(path).startswith(homes):
                offenders.append(f"{name_of(path)} imports {name}")
    assert not offenders


def test_files_are_short_and_documented_and_class_names_are_unique() -> None:
    """At most 400 lines, a module docstring, and no class name that two modules define."""
    offenders: list[str] = []
    defined: dict[str, list[str]] = {}
    for path in SOURCES:
        text = path.read_text()
        tree = ast.parse(text)
        if (lines := len(text.splitlines())) > 400:
            offenders.append(f"{name_of(path)} has {lines} lines")
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            offenders.append(f"{name_of(path)} has no docstring")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(name_of(path))
    for name, places in defined.items():
        if len(places) > 1:
            offenders.append(f"class {name} is defined in {' and '.join(places)}")
    assert not offenders


def test_no_circle_of_imports() -> None:
    """Modules that import each other at the top of the file form no circle."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCES
    }
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        needs[name] = set()
        for wanted in imported(path, top_level=True):
            target = wanted if wanted in modules else wanted.rpartition(".")[0]
            if target in modules and target != name:
                needs[name].add(target)
    TopologicalSorter(needs).prepare()  # raises CycleError and names the circle


def test_every_package_has_a_rule() -> None:
    unknown = {room(path) for path in SOURCES} - LEVELS.keys() - {"__init__"}
    assert not unknown


def test_help_is_quick_and_light() -> None:
    """Under 0.5 s of CPU, without torch and ray."""
    code = (
        "import resource, sys\n"
        "from cctmn.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'boto3', 'pydicom'} & sys.modules.keys()\n"
        "print(heavy or 'light', usage.ru_utime + usage.ru_stime)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weight, cpu_s = done.stdout.splitlines()[-1].split()
    assert weight == "light"
    assert float(cpu_s) < 0.5
