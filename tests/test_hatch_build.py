"""The compiled library is a bonus: without a compiler the package builds as well."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def build() -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_the_library_has_both_transforms(build: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "_winograd.so"
    assert build.compiled(ROOT / build.SOURCE, library)
    loaded = ctypes.CDLL(str(library))
    assert loaded.cctmn_winograd_inputs
    assert loaded.cctmn_winograd_outputs
    assert list(tmp_path.iterdir()) == [library]


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_no_old_library_stays(
    build: ModuleType, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    library = tmp_path / "_winograd.so"
    library.write_bytes(b"of an older source")
    assert not build.compiled(ROOT / build.SOURCE, library)
    assert not list(tmp_path.iterdir())
