"""A third kind of storage joins by one module; nothing else looks at a scheme."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cctmn import folder, store, tables
from cctmn.data import files
from cctmn.errors import InputError, ResumeError
from tests.store import memory

PACKAGE = Path(store.__file__).parents[1]


@pytest.fixture
def mem() -> Iterator[str]:
    store.register("mem", memory, memory)
    yield "mem://out"
    store.unregister("mem")
    memory.clear()


def test_a_registered_scheme_is_listed_read_and_written(mem: str) -> None:
    uri = store.join(mem, "deep", "x.png")
    store.put(uri, b"0123456789", private=True)
    assert [(info.uri, info.size) for info in store.list_objects(mem)] == [(uri, 10)]
    assert store.read_range(uri, start=2, length=3) == b"234"
    assert store.read_all(uri) == b"0123456789"
    version = store.read_version(uri)
    assert version is not None
    assert store.put_if_absent(uri, b"new") is None
    assert store.put_if_match(uri, b"new", etag="other") is None
    assert store.put_if_match(uri, b"new", etag=version.etag) is not None
    assert store.read_optional(uri) == b"new"
    store.delete(uri)
    assert store.read_optional(uri) is None
    with pytest.raises(InputError, match="no such"):
        list(store.list_objects(mem))


def test_names_of_a_registered_scheme(mem: str) -> None:
    assert store.to_uri(mem) == store.display(mem) == mem
    assert store.below("mem://data", "a/../b") == "mem://data/b"
    assert store.below("/data", "mem://x/y") == "mem://x/y"
    assert store.parent("mem://out/x") == "mem://out/"


def test_a_registered_scheme_takes_locks_tables_and_images(mem: str) -> None:
    with folder.only_writer(mem):
        assert store.read_optional(f"{mem}/private/lock")
        with pytest.raises(ResumeError, match="is writing here"):
            folder.only_writer(mem).__enter__()
    assert store.read_optional(f"{mem}/private/lock") is None

    folder_uri = store.join(mem, "predictions")
    store.make_folder(folder_uri)
    filesystem, path = store.arrow_filesystem(store.join(folder_uri, "a.parquet"))
    pq.write_table(pa.table({"slice_id": ["1"]}), path, filesystem=filesystem)
    assert tables.parquet_files(folder_uri) == [store.join(folder_uri, "a.parquet")]
    assert tables.rows(folder_uri) == [{"slice_id": "1"}]

    store.put(store.join(mem, "images", "p 1.png"), b"x")
    images = files.list_images(store.join(mem, "images"), suffixes=(".png",), hint="")
    assert list(images) == ["p 1.png"]


def test_storage_without_a_sink_is_read_only() -> None:
    store.register("readonly", memory)
    try:
        with pytest.raises(InputError, match="read only; write to"):
            store.put("readonly://x", b"")
    finally:
        store.unregister("readonly")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="unknown kind of storage; give a path or one of"):
        list(store.list_objects("ftp://server/x"))


def test_no_file_outside_store_asks_for_a_scheme() -> None:
    asks = re.compile(r"""is_s3|\.startswith\(\(?["'](s3|file)://|store\.scheme\(""")
    offenders = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "store"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asks.search(line)
    ]
    assert offenders == []
