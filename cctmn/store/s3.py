"""Objects of S3 and of servers that speak its protocol, by s3:// URI; implements Source and Sink.

`s3_client.py` has the client, `s3_errors.py` what becomes of each refusal.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from cctmn.errors import InputError, ObjectError, StoreError
from cctmn.store import s3_errors
from cctmn.store.protocols import ObjectInfo, Traits, Version
from cctmn.store.s3_client import client, read_arguments
from cctmn.store.s3_errors import repeat
from cctmn.store.uri import WILDCARDS

# Objects per request of a listing; servers allow no more.
PAGE_KEYS = 1000

# Every listing of S3 costs money.
traits: Final = Traits(file_locks=False, whole_writes=True, list_period_s=15.0)

T = TypeVar("T")


def list_objects(text: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a prefix or glob, or the object itself."""
    bucket, key = _split(text)
    literal = look_up(text) if key and not key.endswith("/") else None
    first_wildcard = min((key.find(c) for c in WILDCARDS if c in key), default=len(key))
    if first_wildcard == len(key):
        below = list_below(text)
        if literal is not None and literal.error_code:
            # A role limited to a prefix may not look up the prefix itself.
            first = next(below, None)
            yield from (literal,) if first is None else (first,)
        elif literal is not None:
            yield literal
        yield from below
    elif literal is not None:  # a name may hold the characters of a glob
        yield literal
    else:
        for info in _list(bucket, key[:first_wildcard]):
            if fnmatch.fnmatchcase(_split(info.uri)[1], key):
                yield info


def list_below(folder: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a prefix, which is never a pattern."""
    bucket, key = _split(folder)
    yield from _list(bucket, key.rstrip("/") + "/" if key else "")


def _list(bucket: str, prefix: str) -> Iterator[ObjectInfo]:
    for page in _pages(bucket, prefix):
        for entry in page.get("Contents", []):
            # Consoles write an empty object with a slash at its end for a folder.
            if entry["Key"].endswith("/") and entry["Size"] == 0:
                continue
            yield ObjectInfo(
                f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"')
            )


def _pages(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing.

    Each page is one request with the token of the page before, and is repeated by itself: a
    paginator that has failed once is exhausted, and would end the listing too early.
    """
    page = _page(bucket, prefix, MaxKeys=PAGE_KEYS)
    yield page
    while page.get("IsTruncated"):
        token = page["NextContinuationToken"]
        page = _page(bucket, prefix, MaxKeys=PAGE_KEYS, ContinuationToken=token)
        yield page


def _page(bucket: str, prefix: str, **position: Any) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        asked = {"Bucket": bucket, "Prefix": prefix} | position | read_arguments(bucket)
        return dict(client(bucket).list_objects_v2(**asked))

    return repeat(ask, f"s3://{bucket}/{prefix}", on="listing")


def look_up(uri: str) -> ObjectInfo | None:
    """Return the object of exactly this name, None where there is none."""
    bucket, key = _split(uri)
    try:
        head = _read(
            lambda: client(bucket).head_object(Bucket=bucket, Key=key, **read_arguments(bucket)),
            uri,
        )
    except ObjectError as error:
        if error.code == "not_found":
            _check_bucket(bucket)
            return None
        return ObjectInfo(uri, 0, "", error.code)
    return ObjectInfo(uri, head["ContentLength"], head["ETag"].strip('"'))


@functools.cache
def _check_bucket(bucket: str) -> None:
    """Raise InputError if there is no such bucket, which the answer to a HEAD does not tell."""
    try:
        _page(bucket, "", MaxKeys=1)
    except InputError as error:  # a role may have no right to list
        if error.text == s3_errors.OF_USER["NoSuchBucket"]:
            raise InputError(error.text, f"s3://{bucket}") from None


def is_reachable(uri: str) -> bool:
    """Return whether the bucket of an object answers another request, if only with a refusal."""
    try:
        _page(*_split(uri), MaxKeys=1)
    except InputError:
        return True
    except StoreError:
        return False
    return True


def read_range(uri: str, *, start: int, length: int | None, etag: str = "") -> bytes:
    """Return bytes [start, start + length) of the object.

    With an ETag, raises ObjectError("changed") if the object has another one by now. It is
    compared with that of the same answer as the bytes, since some servers misjudge If-Match.
    """
    bucket, key = _split(uri)
    span: dict[str, Any] = {}
    if start or length is not None:
        span["Range"] = f"bytes={start}-" + ("" if length is None else str(start + length - 1))

    def get() -> bytes:
        answer = client(bucket).get_object(Bucket=bucket, Key=key, **span, **read_arguments(bucket))
        # As a context the body is urllib3's own, whose errors are not those of boto3.
        with contextlib.closing(answer["Body"]) as body:
            if etag and answer["ETag"].strip('"') != etag:
                raise ObjectError("changed", uri)
            return body.read()

    try:
        return _read(get, uri)
    except ObjectError as error:
        # The range begins behind the end, so the object is shorter than the caller knew it.
        if error.code != "truncated" or not etag:
            raise
        now = look_up(uri)
        if now is None or now.etag == etag:
            raise
        raise ObjectError("changed", uri) from None


def read_version(uri: str) -> Version:
    """Return the whole object with its ETag and age."""
    bucket, key = _split(uri)

    def get() -> Version:
        answer = client(bucket).get_object(Bucket=bucket, Key=key)
        here = datetime.now(UTC)
        sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        there = parsedate_to_datetime(sent) if sent else here
        # Both times are of the server's clock, so that a wrong clock here does not matter.
        age_s = (there - answer["LastModified"]).total_seconds()
        clock_s = (there - here).total_seconds()
        return Version(answer["Body"].read(), answer["ETag"], age_s, clock_s)

    return _read(get, uri)


def _read(call: Callable[[], T], uri: str) -> T:
    """Run a read; where the object is absent and the role may not know that, say that it is.

    S3 says "forbidden" of a missing object to a role that may not list the whole bucket.
    """
    try:
        return repeat(call, uri)
    except ObjectError as error:
        if error.code == "permission_denied" and _is_absent(uri):
            raise ObjectError("not_found", uri) from None
        raise


def _is_absent(uri: str) -> bool:
    bucket, key = _split(uri)
    try:
        listed = _page(bucket, key, MaxKeys=1)
    except InputError:
        return False
    return key not in [entry["Key"] for entry in listed.get("Contents", [])]


def put(uri: str, data: bytes, *, private: bool) -> None:  # noqa: ARG001  (part of Sink)
    """Write a whole object; who may read it is decided by the bucket's policy, not by `private`."""
    bucket, key = _split(uri)
    repeat(lambda: client(bucket).put_object(Bucket=bucket, Key=key, Body=data), uri, on="writing")


def put_if_absent(uri: str, data: bytes) -> str | None:
    """Write an object unless there is one. Returns its ETag, or None if there was one.

    Raises NotImplementedError where the server refuses conditional writes. A server that ignores
    the condition writes: call this twice to find out.
    """
    return _put_if(uri, data, IfNoneMatch="*")


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    """Replace the object of this ETag. Returns the new ETag, or None if it has another."""
    written = _put_if(uri, data, IfMatch=etag)
    bare = etag.strip('"')
    if written is not None or bare == etag:
        return written
    # Ceph's gateway compares with the bare ETag, and refuses the one in quotes that it gave itself.
    return _put_if(uri, data, IfMatch=bare)


def _put_if(uri: str, data: bytes, **condition: Any) -> str | None:
    from botocore.exceptions import ClientError

    bucket, key = _split(uri)

    def put() -> str | None:
        try:
            answer = client(bucket).put_object(Bucket=bucket, Key=key, Body=data, **condition)
            return str(answer["ETag"])
        except ClientError as error:
            code = s3_errors.code_of(error)
            if code in s3_errors.CONDITION_FAILED:
                return None
            if code in s3_errors.NOT_IMPLEMENTED:
                raise NotImplementedError from None
            # A conflict of two writes at the same time is raised here too, and is repeated.
            raise

    return repeat(put, uri, on="writing")


def delete(uri: str) -> None:
    """Remove an object; a missing one is not an error."""
    bucket, key = _split(uri)
    repeat(lambda: client(bucket).delete_object(Bucket=bucket, Key=key), uri, on="writing")


def make_folder(uri: str) -> None:
    """Do nothing: keys need no folders."""


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError("no bucket; write s3://bucket/prefix", uri)
    return bucket, key
