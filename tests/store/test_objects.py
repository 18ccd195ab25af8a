"""Objects by URI on local disk and on a real S3 server."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cctmn import store
from cctmn.errors import InputError, ObjectError, StoreError
from cctmn.store import s3_client, s3_errors
from tests.conftest import S3Server


def listed(text: str) -> list[tuple[str, int, str]]:
    return [(o.uri.rsplit("/", 1)[1], o.size, o.error_code) for o in store.list_objects(text)]


def test_a_folder_lists_everything_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b", "a", ".hidden", "sub/c"):
        (tmp_path / name).write_bytes(name.encode())
    assert listed(str(tmp_path)) == [(".hidden", 7, ""), ("a", 1, ""), ("b", 1, ""), ("c", 5, "")]


def test_links_and_pipes_are_listed_with_a_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-file").symlink_to(__file__)
    (tmp_path / "to-nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "to-folder").symlink_to("/")
    codes = {name: code for name, _, code in listed(str(tmp_path))}
    assert codes == {
        "pipe": "not_regular_file",
        "to-file": "",
        "to-folder": "not_regular_file",
        "to-nowhere": "not_found",
    }


def test_globs_files_and_names_that_look_like_globs(tmp_path: Path) -> None:
    for name in ("a1.dcm", "a2.dcm", "b.dcm", "scan[1].dcm"):
        (tmp_path / name).write_bytes(b"x")
    assert [n for n, _, _ in listed(f"{tmp_path}/a*.dcm")] == ["a1.dcm", "a2.dcm"]
    assert [n for n, _, _ in listed(f"{tmp_path}/scan[1].dcm")] == ["scan%5B1%5D.dcm"]


@pytest.mark.parametrize("text", ["nowhere", "nowhere/*.dcm", "s3://nobucket/x"])
def test_a_place_without_objects_is_an_input_error(text: str, tmp_path: Path, s3: S3Server) -> None:
    with pytest.raises(InputError):
        listed(text if "://" in text else str(tmp_path / text))


def test_bytes_of_a_name_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"sl\xefce")
    (tmp_path / name).write_bytes(b"data")
    [result] = store.list_objects(str(tmp_path))
    assert result.uri.endswith("sl%EFce")
    assert store.read_all(result.uri) == b"data"


def test_ranges(tmp_path: Path, s3: S3Server) -> None:
    s3.bucket("ranges")
    s3.upload("ranges", "x", b"0123456789")
    (tmp_path / "x").write_bytes(b"0123456789")
    for uri in ((tmp_path / "x").as_uri(), "s3://ranges/x"):
        assert store.read_range(uri, start=2, length=3) == b"234"
        assert store.read_range(uri, start=8, length=9) == b"89"
        assert store.read_range(uri, start=4, length=0) == b""
        assert store.read_all(uri) == b"0123456789"


def test_s3_lists_below_a_prefix_and_by_glob(s3: S3Server) -> None:
    s3.bucket("listing")
    for key in ("a/1", "a/2", "ab/3", "a/deep/4.dcm", "a/"):
        s3.upload("listing", key, b"" if key == "a/" else b"x")
    assert [o.uri for o in store.list_objects("s3://listing/a")] == [
        "s3://listing/a/1",
        "s3://listing/a/2",
        "s3://listing/a/deep/4.dcm",
    ]
    assert [n for n, _, _ in listed("s3://listing/a/*.dcm")] == ["4.dcm"]
    assert [n for n, _, _ in listed("s3://listing/a/2")] == ["2"]
    assert len(listed("s3://listing")) == 4


def test_a_missing_object_is_a_code_and_a_dead_server_is_not(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.bucket("missing")
    for uri in ("s3://missing/x", (tmp_path / "x").as_uri()):
        with pytest.raises(ObjectError, match="x: not found; check the name"):
            store.read_all(uri)
        assert store.read_optional(uri) is None
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
        s3_client.clear()
        with pytest.raises(StoreError, match="run the same command again"):
            store.read_all("s3://missing/x")
    s3_client.clear()


def test_put_writes_all_or_nothing_with_private_rights(tmp_path: Path, s3: S3Server) -> None:
    s3.bucket("puts")
    for folder in (tmp_path.as_uri(), "s3://puts"):
        uri = store.join(folder, "deep", "x")
        store.put(uri, b"one")
        store.put(uri, b"two", private=True)
        assert store.read_all(uri) == b"two"
        store.delete(uri)
        store.delete(uri)
        assert store.read_optional(uri) is None
    store.put((tmp_path / "key").as_uri(), b"", private=True)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="check OUT"):
        store.put((tmp_path / "file" / "x").as_uri(), b"")


def test_a_file_gets_the_name_that_is_known_when_it_is_complete(tmp_path: Path) -> None:
    written: list[int] = []
    with store.new_file_named_last(tmp_path.as_uri(), lambda: f"{written[0]}.bin") as file:
        written.append(file.write(b"12345"))
    assert [path.name for path in tmp_path.iterdir()] == ["5.bin"]
    with (
        pytest.raises(RuntimeError),
        store.new_file_named_last(tmp_path.as_uri(), lambda: "never"),
    ):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["5.bin"]


@pytest.mark.parametrize("place", ["{tmp}/x", "s3://new-file/x"])
def test_a_new_file_that_fails_half_way_leaves_the_old_one(
    place: str, tmp_path: Path, s3: S3Server
) -> None:
    s3.bucket("new-file")
    uri = store.to_uri(place.format(tmp=tmp_path))
    with store.new_file(uri) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), store.new_file(uri, private=True) as file:
        file.write(b"new")
        raise RuntimeError
    assert store.read_all(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] in ([], ["x"])
