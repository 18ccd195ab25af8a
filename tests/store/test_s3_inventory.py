"""A bucket's inventory as INPUT, in the three forms that S3 writes."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from cctmn.errors import DataError
from cctmn.read.inventory import list_objects
from tests.conftest import S3Server

ROWS = [
    {"bucket": "ct", "key": "a/1 one+ä.dcm", "size": 10, "e_tag": "e1", "is_latest": True},
    {"bucket": "ct", "key": "a/2.dcm", "size": 20, "e_tag": "e2", "is_latest": False},
    {"bucket": "ct", "key": "a/3.dcm", "size": 30, "e_tag": "e3", "is_latest": True},
    {"bucket": "ct", "key": "a/folder/", "size": 0, "e_tag": "e4", "is_latest": True},
]
EXPECTED = [("s3://ct/a/1 one+ä.dcm", 10, "e1"), ("s3://ct/a/3.dcm", 30, "e3")]


def data_of(form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "CSV":
        text = io.StringIO()
        for row in ROWS:
            values = [
                str(value).lower() if value in (True, False) else value for value in row.values()
            ]
            values[1] = str(values[1]).replace("+", "%2B").replace(" ", "+").replace("ä", "%C3%A4")
            csv.writer(text, quoting=csv.QUOTE_ALL).writerow(values)
        return gzip.compress(text.getvalue().encode())
    table = pa.Table.from_pylist(ROWS)
    if form == "ORC":
        pyarrow.orc.write_table(table, buffer)
    else:
        pq.write_table(table, buffer)
    return buffer.getvalue()


def put(s3: S3Server, form: str, **changes: Any) -> str:
    s3.bucket("inventories")
    s3.upload("inventories", "data/1", data_of(form))
    manifest = {
        "sourceBucket": "ct",
        "destinationBucket": "arn:aws:s3:::inventories",
        "fileFormat": form,
        "fileSchema": "Bucket, Key, Size, ETag, IsLatest",
        "files": [{"key": "data/1", "size": 1, "MD5checksum": ""}],
    }
    s3.upload("inventories", "2026/manifest.json", json.dumps(manifest | changes).encode())
    return "s3://inventories/2026/manifest.json"


@pytest.mark.parametrize("form", ["CSV", "Parquet", "ORC"])
def test_the_objects_of_an_inventory_are_listed_without_a_listing(form: str, s3: S3Server) -> None:
    text = put(s3, form)
    listed = [(info.uri, info.size, info.etag) for info in list_objects([text])]
    assert listed == EXPECTED


def test_an_inventory_without_etags_is_refused(s3: S3Server) -> None:
    text = put(s3, "CSV", fileSchema="Bucket, Key, Size, Something, IsLatest")
    with pytest.raises(DataError, match=r"manifest\.json: the inventory has no etag; add the opt"):
        list(list_objects([text]))


def test_a_broken_manifest_is_refused(s3: S3Server) -> None:
    text = put(s3, "CSV", files=["x"])
    with pytest.raises(DataError, match="not a manifest of S3 Inventory"):
        list(list_objects([text]))


def test_another_manifest_is_an_object_like_any_other(s3: S3Server) -> None:
    s3.bucket("other")
    s3.upload("other", "manifest.json", b'{"format": 1}')
    assert [info.uri for info in list_objects(["s3://other/manifest.json"])] == [
        "s3://other/manifest.json"
    ]
