"""The objects of a bucket from its S3 Inventory, a listing that S3 makes every day or week.

It costs a few requests where a listing costs one for each thousand objects. The form is that of
Amazon's documentation "Amazon S3 Inventory": a manifest.json that names files in CSV, Parquet or
ORC.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn.errors import DataError, ObjectError
from cctmn.store import objects
from cctmn.store.protocols import ObjectInfo
from cctmn.store.uri import to_uri

NAME: Final = "manifest.json"
_BUCKET_ARN: Final = "arn:aws:s3:::"
_NEEDED: Final = ("bucket", "key", "size", "etag")


def manifest_of(text: str) -> dict[str, Any] | None:
    """Return the manifest that an INPUT names, None if it names anything else."""
    if not text.lower().endswith(NAME):
        return None
    try:
        manifest = json.loads(objects.read_all(to_uri(text)))
    except (ObjectError, ValueError):  # the listing tells what is wrong with it
        return None
    is_inventory = isinstance(manifest, dict) and {"sourceBucket", "files"} <= set(manifest)
    return manifest if is_inventory else None


def list_inventory(manifest: dict[str, Any], *, where: str) -> Iterator[ObjectInfo]:
    """Yield the objects of an inventory as they were when it was made, in its order.

    Older versions and delete markers are left out. Raises DataError for a manifest of another form
    and for an inventory without sizes and ETags; `where` names it.
    """
    try:
        form = manifest["fileFormat"].upper()
        bucket = manifest["destinationBucket"].removeprefix(_BUCKET_ARN)
        keys = [file["key"] for file in manifest["files"]]
        names = [_plain(name) for name in manifest["fileSchema"].split(",")]
    except (KeyError, AttributeError, TypeError):
        raise DataError("not a manifest of S3 Inventory; give another listing", where) from None
    for key in keys:
        data = objects.read_all(f"s3://{bucket}/{key}", hint="check the files of the inventory")
        rows = _csv_rows(data, names) if form == "CSV" else _table_rows(data, form)
        for row in rows:
            if missing := [name for name in _NEEDED if row.get(name) is None]:
                raise DataError(
                    f"the inventory has no {' and no '.join(missing)}; add the optional fields "
                    "Size and ETag to its configuration, or give the bucket itself",
                    where,
                )
            if _is(row, "islatest", default=True) and not _is(row, "isdeletemarker"):
                uri = f"s3://{row['bucket']}/{row['key']}"
                if not (uri.endswith("/") and not int(row["size"])):
                    yield ObjectInfo(uri, int(row["size"]), str(row["etag"]).strip('"'))


def _csv_rows(data: bytes, names: list[str]) -> Iterator[dict[str, Any]]:
    text = io.TextIOWrapper(gzip.GzipFile(fileobj=io.BytesIO(data)), "utf-8", newline="")
    for values in csv.reader(text):
        row: dict[str, Any] = dict(zip(names, values, strict=False))
        if "key" in row:
            row["key"] = unquote_plus(row["key"])
        # A delete marker has no size.
        yield {name: value or ("0" if name == "size" else value) for name, value in row.items()}


def _table_rows(data: bytes, form: str) -> Iterator[dict[str, Any]]:
    if form == "ORC":
        import pyarrow.orc

        table = pyarrow.orc.ORCFile(pa.BufferReader(data)).read()
    else:
        table = pq.read_table(pa.BufferReader(data))
    table = table.rename_columns([_plain(name) for name in table.column_names])
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def _plain(name: str) -> str:
    """Return a column's name in one spelling: `IsLatest` of CSV is `is_latest` in Parquet."""
    return name.strip().strip('"').replace("_", "").lower()


def _is(row: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = row.get(name)
    return default if value is None or value == "" else str(value).lower() == "true"
