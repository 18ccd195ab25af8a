"""Objects of S3 and of servers that speak its protocol, by s3:// URI; implements Source and Sink.

Endpoint, region and credentials come from the standard AWS variables. This is the only file that
imports boto3.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cctmn.errors import InputError, ObjectError, StoreError
from cctmn.store.protocols import ObjectInfo, Traits, Version
from cctmn.store.uri import WILDCARDS

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from mypy_boto3_s3 import S3Client

# Retries inside botocore, with exponential back-off.
MAX_ATTEMPTS = 8
# Retries of this module, for what botocore does not retry: bodies that are cut, brief 403s.
READ_ATTEMPTS = 4
# The first pause between those retries; it doubles each time.
BACKOFF_S = 0.2
# More than the fetch threads of one process.
POOL_CONNECTIONS = 64

# Error codes of S3 and of other servers.
MISSING = frozenset({"NoSuchKey", "404"})
CUT = frozenset({"InvalidRange", "416"})

T = TypeVar("T")

# Every listing of S3 costs money.
traits: Final = Traits(file_locks=False, whole_writes=True, list_period_s=15.0)


def list_objects(text: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a prefix or glob, or the object itself."""
    bucket, key = _split(text)
    first_wildcard = min((key.find(c) for c in WILDCARDS if c in key), default=len(key))
    prefix, is_glob = key[:first_wildcard], first_wildcard < len(key)
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    iterator = iter(pages)
    while page := _retry(lambda: next(iterator, None), f"s3://{bucket}/{prefix}", is_object=False):
        for entry in page.get("Contents", []):
            name = entry["Key"]
            below = name == key or name.startswith(key.rstrip("/") + "/") or not key
            # Consoles write an empty object with a slash at its end for a folder.
            if name.endswith("/") and entry["Size"] == 0:
                continue
            if fnmatch.fnmatchcase(name, key) if is_glob else below:
                yield ObjectInfo(f"s3://{bucket}/{name}", entry["Size"], entry["ETag"].strip('"'))


def read_range(uri: str, *, start: int, length: int | None) -> bytes:
    """Return bytes [start, start + length) of the object."""
    return _retry(lambda: _get(uri, start, length), uri)


def read_version(uri: str) -> Version:
    """Return the whole object with its ETag and age."""
    bucket, key = _split(uri)

    def get() -> Version:
        answer = _client().get_object(Bucket=bucket, Key=key)
        # Both times are of the server's clock, so that a wrong clock here does not matter.
        sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        age_s = (now - answer["LastModified"]).total_seconds()
        return Version(answer["Body"].read(), answer["ETag"], age_s)

    return _retry(get, uri)


def put(uri: str, data: bytes, *, private: bool) -> None:  # noqa: ARG001  (part of Sink)
    """Write a whole object; who may read it is decided by the bucket's policy, not by `private`."""
    bucket, key = _split(uri)
    _retry(lambda: _client().put_object(Bucket=bucket, Key=key, Body=data), uri, is_object=False)


def put_if_absent(uri: str, data: bytes) -> str | None:
    """Write an object unless there is one. Returns its ETag, or None if there was one.

    Raises NotImplementedError where the server refuses conditional writes. A server that ignores
    the condition writes: call this twice to find out.
    """
    return _put_if(uri, data, IfNoneMatch="*")


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    """Replace the object of this ETag. Returns the new ETag, or None if it has another."""
    return _put_if(uri, data, IfMatch=etag)


def delete(uri: str) -> None:
    """Remove an object; a missing one is not an error."""
    bucket, key = _split(uri)
    _retry(lambda: _client().delete_object(Bucket=bucket, Key=key), uri, is_object=False)


def make_folder(uri: str) -> None:
    """Do nothing: keys need no folders."""


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return Arrow's S3 file system, with timeouts that a busy server needs, and the path."""
    import pyarrow.fs as pafs

    filesystem = pafs.S3FileSystem(
        region=_region(),
        endpoint_override=endpoint(),
        # Arrow's own 1 s and 3 s are too short for a loaded endpoint.
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
    )
    return filesystem, uri.removeprefix("s3://")


def endpoint() -> str | None:
    """Return the S3 endpoint of the standard AWS variables, None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@functools.cache
def _client() -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": MAX_ATTEMPTS},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=POOL_CONNECTIONS,
            # Servers other than AWS rarely serve bucket.host names.
            s3={"addressing_style": "path" if endpoint() else "auto"},
        ),
        region_name=_region(),
    )


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError("no bucket; write s3://bucket/prefix", uri)
    return bucket, key


def _get(uri: str, start: int, length: int | None) -> bytes:
    bucket, key = _split(uri)
    if start == 0 and length is None:
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    end = "" if length is None else str(start + length - 1)
    return _client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end}")["Body"].read()


def _put_if(uri: str, data: bytes, **condition: Any) -> str | None:
    from botocore.exceptions import ClientError

    bucket, key = _split(uri)

    def put() -> str | None:
        try:
            return str(_client().put_object(Bucket=bucket, Key=key, Body=data, **condition)["ETag"])
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in {"PreconditionFailed", "412", "NoSuchKey", "404"}:
                return None
            if code in {"NotImplemented", "501"}:
                raise NotImplementedError from None
            # A conflict of two writes at the same time is raised here too, and is retried.
            raise

    return _retry(put, uri, is_object=False)


def _retry(call: Callable[[], T], uri: str, *, is_object: bool = True) -> T:
    """Run a boto3 call, and again where it fails for a moment.

    Raises ObjectError where the server refuses one object to read, and InputError where it refuses
    a bucket, a listing or a write (not `is_object`). StoreError: it did not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    reason = ""
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2**attempt)
        try:
            return call()
        except NoCredentialsError:
            raise InputError(
                "no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or use a role",
                uri,
            ) from None
        except ClientError as error:
            reason = str(error.response.get("Error", {}).get("Code", "unknown"))
            if reason == "NoSuchBucket" or (reason in MISSING | CUT and not is_object):
                raise InputError(f"{reason}; check the bucket", uri) from None
            if reason in MISSING | CUT:
                raise ObjectError("not_found" if reason in MISSING else "truncated", uri) from None
        except BotoCoreError as error:
            reason = type(error).__name__
    # Refused on every attempt, so it is not one of the brief refusals.
    if reason in {"AccessDenied", "403"}:
        if is_object:
            raise ObjectError("permission_denied", uri)
        raise InputError("access denied; check the rights of this role", uri)
    raise StoreError(f"S3 did not answer ({reason}); run the same command again to resume", uri)
