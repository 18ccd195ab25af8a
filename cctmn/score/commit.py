"""The files of OUT/predictions: how a block of rows is written, and how a file is checked later.

A file's name ends with the hash of its bytes, so that any damage shows. Its metadata hold the
fingerprint of the run's identity, a check value of the folder's key, and the device and precision
of its scores. A file of another model that got into the folder is therefore refused, also when
OUT/private/run.json is lost.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import store, tables
from cctmn.errors import ResumeError
from cctmn.numerics import Numerics
from cctmn.pseudonym import pseudonym

_NAME: Final = re.compile(rf"(?:{tables.MERGED})?[0-9a-f]{{16}}-([0-9a-f]{{16}})\.parquet")
# Columns of more rows are stored in several parts, so that a reader can hold one at a time.
ROW_GROUP_ROWS: Final = 1 << 16
_FINGERPRINT: Final = b"cctmn.fingerprint"
_KEY_CHECK: Final = b"cctmn.key_check"
CODES: Final = b"cctmn.codes"  # rows by error code, so that progress need not read a column


@dataclass(frozen=True)
class Stamp:
    """What the metadata of every file of a run say about the run."""

    fingerprint: str
    key_check: str
    numerics: Numerics | None = None  # None while the device of a new folder is not chosen

    @classmethod
    def of(cls, *, fingerprint: str, key: bytes, numerics: Numerics | None = None) -> Stamp:
        """Return the stamp of a run. The check value does not reveal the key."""
        return cls(fingerprint, pseudonym(key, "key check", ""), numerics)


def write(
    rows: pa.Table, *, folder: str, schema: pa.Schema, stamp: Stamp, device_name: str = ""
) -> None:
    """Write a block of rows as one file, or nothing where there is no row.

    `device_name` is that of the device on which the rows were scored.
    The file is whole and on the disk, or stored on S3, when this returns.
    """
    if not len(rows):
        return
    metadata = {
        **(schema.metadata or {}),
        _FINGERPRINT: stamp.fingerprint.encode(),
        _KEY_CHECK: stamp.key_check.encode(),
        **(stamp.numerics.as_metadata(device_name) if stamp.numerics else {}),
        CODES: json.dumps(Counter(rows["error_code"].to_pylist()), sort_keys=True).encode(),
    }
    _put(rows.select(schema.names).cast(schema).replace_schema_metadata(metadata), folder)


def rewrite(rows: pa.Table, uri: str) -> None:
    """Put these rows in the place of a file. The new file is written before the old one goes."""
    if len(rows):
        kept = {k: v for k, v in (rows.schema.metadata or {}).items() if k != CODES}
        _put(rows.replace_schema_metadata(kept), uri.rsplit("/", 1)[0])
    store.delete(uri)


def codes(metadata: Mapping[bytes, bytes]) -> dict[str, int] | None:
    """Return the rows by error code from a file's metadata, None if they do not say."""
    text = metadata.get(CODES)
    return None if text is None else dict(json.loads(text))


def _put(table: pa.Table, folder: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True, row_group_size=ROW_GROUP_ROWS)
    data = buffer.getvalue()
    block = hashlib.sha256("".join(table["slice_id"].to_pylist()).encode()).hexdigest()[:16]
    store.put(store.join(folder, f"{block}-{_digest(data)}.parquet"), data)


def remove_leftovers(folder: str) -> int:
    """Remove the temporary files that a killed writer left; return their number."""
    if store.traits(folder).whole_writes:
        return 0
    leftovers = list(store.to_path(folder).glob(".*.tmp"))
    for leftover in leftovers:
        leftover.unlink()
    return len(leftovers)


def open_whole(uri: str, *, stamp: Stamp | None) -> pq.ParquetFile | None:
    """Read a file once; return it if it is the one that was written, to its end, else None.

    Raises ResumeError if the file belongs to another run than `stamp`; a file without a stamp
    passes.
    """
    file = opened_if_whole(uri, store.read_all(uri))
    if file is not None and stamp is not None:
        _check_stamp(file.schema_arrow.metadata or {}, uri=uri, stamp=stamp)
    return file


def opened_if_whole(uri: str, data: bytes) -> pq.ParquetFile | None:
    """Return the file of this content, None if it was cut or changed.

    A file of an older version has no hash in its name; of that one every page is decoded.
    """
    name = _NAME.fullmatch(uri.rsplit("/", 1)[1])
    if name and _digest(data) != name[1]:
        return None
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=not name)
        if not name:
            file.read()
    except (pa.ArrowException, OSError):
        return None
    return file


def is_named_by_hash(uri: str) -> bool:
    """Return whether the name is one that `write` gives."""
    return _NAME.fullmatch(uri.rsplit("/", 1)[1]) is not None


def _check_stamp(metadata: Mapping[bytes, bytes], *, uri: str, stamp: Stamp) -> None:
    held = Numerics.of_file(metadata)
    if held and stamp.numerics and held != stamp.numerics:
        raise ResumeError(
            f"holds scores in {held}, this job is to compute in {stamp.numerics}; use a new OUT",
            uri,
        )
    for name, ours, what in (
        (_FINGERPRINT, stamp.fingerprint, "another model or other settings"),
        (_KEY_CHECK, stamp.key_check, "another private/key"),
    ):
        if metadata.get(name, ours.encode()) != ours.encode():
            raise ResumeError(f"was written with {what}; use a new OUT", uri)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
