"""List the objects of every INPUT: files, folders, globs, S3 prefixes, tables and S3 Inventory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cctmn import store
from cctmn.errors import InputError, StoreError
from cctmn.parallel import map_in_order
from cctmn.reporter import Reporter, silent
from cctmn.store import ObjectInfo, s3_inventory
from cctmn.user_table import is_table, read_user_table

# Objects that are looked up or probed at a time: latency bounds that work, not bandwidth.
THREADS: Final = 16


def list_inputs(
    inputs: Sequence[str], *, root: str | None = None, report: Reporter = silent
) -> Iterator[ObjectInfo]:
    """Yield every object of the INPUTs in order. An object that is named twice comes once.

    Relative names in a table are below `root`, or below the table's own folder. A name without an
    object is yielded with the code `not_found`. Raises InputError for an INPUT that does not exist,
    DataError for a table that cannot be read.
    """
    seen: set[str] = set()
    # A folder names each object once, so that its names need not be kept.
    may_repeat = len(inputs) > 1 or any(is_table(text) or _is_s5cmd(text) for text in inputs)
    repeats = 0
    for text in inputs:
        for info in _objects_of(text, root):
            if info.uri in seen:
                repeats += 1
                continue
            if may_repeat:
                seen.add(info.uri)
            yield info
    if repeats:
        report(f"{repeats:,} names of INPUT are repetitions; each object is scored once")


def _objects_of(text: str, root: str | None) -> Iterator[ObjectInfo]:
    if is_table(text):
        return _list_table(text, root)
    if manifest := s3_inventory.manifest_of(text):
        return s3_inventory.list_inventory(manifest, where=text)
    return _list_s5cmd(text) if _is_s5cmd(text) else store.list_objects(text)


def _is_s5cmd(text: str) -> bool:
    return text.lower().endswith(".s5cmd")


def _list_s5cmd(text: str) -> Iterator[ObjectInfo]:
    """Yield the objects of a manifest for s5cmd, where a source may be a pattern.

    Each line is a command, such as `cp s3://bucket/series/* folder`; its first URI is the source.
    The Imaging Data Commons gives out such files.
    """
    data = store.read_all(store.to_uri(text), hint="give a manifest of s5cmd")
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        source = next((word.strip("'\"") for word in words if "://" in word), None)
        if source is None:
            raise InputError("no s3:// source; write cp s3://bucket/key .", f"{text} line {number}")
        empty = True
        for info in store.find_objects(store.to_uri(source)):
            empty = False
            yield info
        if empty:
            yield ObjectInfo(store.to_uri(source), 0, "", "not_found")


def _list_table(text: str, root: str | None) -> Iterator[ObjectInfo]:
    base = root or store.parent(text)

    names = read_user_table(text).slices()
    yield from look_up_all(store.below(base, name) for name in names)


def look_up_all(uris: Iterable[str]) -> Iterator[ObjectInfo]:
    """Yield the object of each URI in order; what cannot be looked up has the code of its reason.

    Raises StoreError if storage does not answer for any object.
    """
    # Each costs a request, so several are in flight.
    yield from map_in_order(_look_up, uris, threads=THREADS)


def _look_up(uri: str) -> ObjectInfo:
    code = "not_found"
    try:
        if info := store.look_up(uri):
            return info
    except (OSError, ValueError):  # a name that no file can have
        pass
    except StoreError:
        if not store.is_reachable(uri):
            raise
        code = "storage_failed"
    return ObjectInfo(uri, 0, "", code)
