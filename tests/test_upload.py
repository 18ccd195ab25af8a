"""What goes up to a cluster: code that git tracks, and no picture that lies beside it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from cctmn import upload
from cctmn.errors import ConfigError, InputError

NAME = "MUSTERMANN^ERIKA"


def put(path: Path, text: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a folder of pictures that git does not know."""
    top = tmp_path / "checkout"
    for name in ("pyproject.toml", "cctmn/a.py", "jobs/score.py", "kept/b.bin"):
        put(top / name)
    put(top / ".gitignore", "kept/\n")
    git(tmp_path, "init", "-q", str(top))
    git(top, "add", "-f", ".")
    put(top / NAME / "1.dcm")
    put(top / "mine.py")
    put(tmp_path / "elsewhere" / NAME)
    (top / "link").symlink_to(tmp_path / "elsewhere")
    git(top, "add", "link")
    return top


def staged(
    script: Path | None, working_dir: Path | None = None
) -> tuple[dict[str, str], upload.Upload]:
    folder = None if working_dir is None else str(working_dir)
    with upload.staged(None if script is None else str(script), folder) as what:
        top = Path(what.folder)
        assert top.stat().st_mode & 0o777 == 0o700
        files = {
            f.relative_to(top).as_posix(): f.read_text() for f in top.rglob("*") if f.is_file()
        }
    assert not top.exists()
    return files, what


def test_only_what_git_tracks_goes_up(checkout: Path) -> None:
    put(checkout / "cctmn" / "a.py", "changed")
    (checkout / "pyproject.toml").touch()
    files, what = staged(checkout / "jobs" / "score.py")
    # the last one although .gitignore names it
    assert set(files) == {"pyproject.toml", "cctmn/a.py", "jobs/score.py", "kept/b.bin"}
    assert files["cctmn/a.py"] == "changed"
    assert what.script == "jobs/score.py"
    assert what.summary == (
        "uploading 4 files, 0.0 MB; 1 Python file(s) that git does not track are left out; "
        "1 link(s) are left out"
    )


def test_a_script_that_git_does_not_track_is_refused(checkout: Path) -> None:
    with pytest.raises(ConfigError, match="git does not track this script"):
        staged(checkout / "mine.py")
    with pytest.raises(InputError, match="no such script"):
        staged(checkout / "none.py")


def test_without_git_the_package_and_the_script_go_up(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "cctmn/x/a.py", "jobs/score.py", "cctmn/__pycache__/a.pyc"):
        put(tmp_path / name)
    put(tmp_path / NAME / "1.dcm")
    files, what = staged(tmp_path / "jobs" / "score.py")
    assert set(files) == {"pyproject.toml", "cctmn/x/a.py", "jobs/score.py"}
    assert "not a git checkout" in what.summary


def test_a_folder_that_the_user_names_goes_up_whole_and_says_so(checkout: Path) -> None:
    files, what = staged(checkout / "mine.py", checkout)
    assert {f"{NAME}/1.dcm", "mine.py", "kept/b.bin"} <= set(files)
    assert not any(name.startswith((".git/", "link")) for name in files)
    assert what.summary.startswith("uploading 6 files, 0.0 MB; all of --working-dir but .git, ")
    assert "1 link(s) are left out" in what.summary


def test_what_is_too_large_is_refused_before_the_upload(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (checkout / "kept" / "b.bin").open("wb") as file:
        file.truncate(upload.MAX_BYTES)
    monkeypatch.setattr(upload.shutil, "copy", lambda *_: pytest.fail("copied"))
    with pytest.raises(ConfigError, match="100 MiB and a cluster takes 100; leave out") as caught:
        staged(checkout / "jobs" / "score.py")
    assert caught.value.names.startswith("kept 100 MiB, kept/b.bin 100 MiB")


def test_without_a_script_what_git_tracks_of_the_package_goes_up(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(checkout / "cctmn" / "new.py")
    monkeypatch.setattr(upload, "__file__", str(checkout / "cctmn" / "upload.py"))
    files, what = staged(None)
    assert set(files) == {"cctmn/a.py"}
    assert what.script is None
    assert "1 Python file(s) that git does not track" in what.summary


def test_without_a_script_the_package_goes_up_as_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cctmn/upload.py", "cctmn/x/a.py", "cctmn/__pycache__/a.pyc", "other/b.py"):
        put(tmp_path / name)
    put(tmp_path / upload.COMPILED)
    monkeypatch.setattr(upload, "__file__", str(tmp_path / "cctmn" / "upload.py"))
    files, what = staged(None)
    assert set(files) == {"cctmn/upload.py", "cctmn/x/a.py", upload.COMPILED}
    assert "the package as it is installed here" in what.summary


def test_compiled_code_goes_up_although_git_ignores_it(checkout: Path) -> None:
    put(checkout / ".gitignore", "kept/\n*.so\n")
    put(checkout / upload.COMPILED)
    files, what = staged(checkout / "jobs" / "score.py")
    assert upload.COMPILED in files
    assert f"compiled code for {platform.system()} on {platform.machine()}" in what.summary


def test_a_working_dir_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; check --working-dir"):
        staged(None, tmp_path / "none")
