"""Objects by URI: list, read a range, put, delete; local disk and S3.

In: file:///... or s3://bucket/key. Out: bytes and ObjectInfo. What is wrong with one object is a
SliceError (it becomes a row); storage that does not answer after its retries is a StoreError (the
job stops and can be resumed). S3 goes through boto3 and takes endpoint, region and credentials from
the standard AWS variables; pyarrow's file system for the same place comes from `arrow_filesystem`.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote, unquote_to_bytes

from cctmn.errors import InputError, SliceError, StoreError

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from mypy_boto3_s3 import S3Client

S3_MAX_ATTEMPTS = 8  # botocore's own retries, with exponential back-off
READ_ATTEMPTS = 4  # ours, for what botocore does not retry: cut bodies, passing 403s
BACKOFF_S = 0.2  # doubled each time
POOL_CONNECTIONS = 64  # more than the fetch threads of one process
WILDCARDS = "*?["
CHUNK_BYTES = 1 << 20  # read-ahead of a file that is read from front to back

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its URI, bytes, version tag, and the code of what forbids reading it ("")."""

    uri: str
    size: int
    etag: str
    error_code: str = ""


@dataclass(frozen=True)
class Version:
    """One object of S3 as it is now; the age is that of its last write."""

    data: bytes
    etag: str
    age_s: float


def to_uri(text: str) -> str:
    """Absolute URI of a local path; S3 URIs unchanged. Bytes that are not UTF-8 survive."""
    if is_s3(text):
        return text
    path = os.fsdecode(unquote_to_bytes(text[7:])) if text.startswith("file://") else text
    absolute = Path(path).expanduser().absolute()
    return "file://" + quote(os.fsencode(os.path.normpath(absolute)))


def to_path(uri: str) -> Path:
    """Local path of a file:// URI."""
    assert uri.startswith("file://"), uri
    return Path(os.fsdecode(unquote_to_bytes(uri[7:])))


def display(uri: str) -> str:
    """The URI as a person names it: of a local file its path, with no percent signs in it."""
    return uri if is_s3(uri) else str(to_path(uri))


def is_s3(uri: str) -> bool:
    """Whether the URI is on S3."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *parts])


def below(root: str, name: str) -> str:
    """URI of a name: its own if it is absolute, else below the root, which is a path or URI."""
    if is_s3(name) or name.startswith(("file://", "/", "~")):
        return to_uri(name)
    if is_s3(root):
        return "s3://" + posixpath.normpath(posixpath.join(root.removeprefix("s3://"), name))
    return to_uri(str(to_path(to_uri(root)) / name))


def parent(text: str) -> str:
    """URI of the folder that a path or URI is in."""
    return to_uri(text).rpartition("/")[0] + "/"


def list_objects(text: str) -> Iterator[ObjectInfo]:
    """Every object below a folder, prefix or glob, or the object itself, sorted by URI.

    Nothing is passed over: hidden files are listed, a linked folder, a pipe or an unreadable folder
    is listed with its code. Raises InputError if nothing is there.
    """
    found = False
    for info in find_objects(text):
        found = True
        yield info
    if not found:
        raise InputError(f"{text}: no such file, folder, prefix or match; check INPUT")


def find_objects(text: str) -> Iterator[ObjectInfo]:
    """As list_objects, but finding nothing is no error."""
    return _list_s3(text) if is_s3(text) else _list_local(text)


def read_all(uri: str) -> bytes:
    """The whole object."""
    return read_range(uri, start=0, length=None)


def read_range(uri: str, *, start: int, length: int | None) -> bytes:
    """Bytes [start, start + length) of the object; fewer only where the object ends."""
    if length == 0:
        return b""
    if is_s3(uri):
        return _retry_s3(lambda: _get_s3(uri, start, length))
    try:
        with to_path(uri).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    except OSError as error:
        _raise_local(error)


def put(uri: str, data: bytes, *, private: bool = False) -> None:
    """Write a whole object, seen by others entirely or not at all; private: mode 0600."""
    if is_s3(uri):
        bucket, key = _split_s3(uri)
        _retry_s3(lambda: _s3().put_object(Bucket=bucket, Key=key, Body=data))
        return
    path = to_path(uri)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); check OUT") from None


def put_if_absent(uri: str, data: bytes) -> str | None:
    """Write an S3 object if there is none; its ETag, or None where there is one already.

    Raises NotImplementedError where the server knows no conditional writes. A server that ignores
    them writes: ask twice to find out.
    """
    return _put_if(uri, data, IfNoneMatch="*")


def put_if_match(uri: str, data: bytes, *, etag: str) -> str | None:
    """Write an S3 object over that of this ETag; the new one, or None if it is not there."""
    return _put_if(uri, data, IfMatch=etag)


def read_version(uri: str) -> Version | None:
    """The whole S3 object with its ETag and age, or None where there is none."""
    bucket, key = _split_s3(uri)
    try:
        answer = _retry_s3(lambda: _s3().get_object(Bucket=bucket, Key=key))
        data = answer["Body"].read()
    except SliceError as error:
        if error.code == "not_found":
            return None
        raise StoreError(f"{uri}: {error.sentence}") from None
    # both times are of the server's clock, so that it does not matter what ours shows
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
    return Version(data, answer["ETag"], (now - answer["LastModified"]).total_seconds())


def delete(uri: str) -> None:
    """Remove an object; one that is not there is no error."""
    if is_s3(uri):
        bucket, key = _split_s3(uri)
        _retry_s3(lambda: _s3().delete_object(Bucket=bucket, Key=key))
    else:
        to_path(uri).unlink(missing_ok=True)


def read_optional(uri: str) -> bytes | None:
    """The whole object, or None where there is none."""
    try:
        return read_all(uri)
    except SliceError as error:
        if error.code == "not_found":
            return None
        raise StoreError(f"{uri}: {error.sentence}") from None


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Arrow file system and the path in it, with timeouts that a busy S3 needs."""
    import pyarrow.fs as pafs

    if not is_s3(uri):
        return pafs.LocalFileSystem(), str(to_path(uri))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    filesystem = pafs.S3FileSystem(
        region=region,
        endpoint_override=endpoint(),
        connect_timeout=5,  # pyarrow's own 1 s and 3 s are too short for a loaded endpoint
        request_timeout=30,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_MAX_ATTEMPTS),
    )
    return filesystem, uri.removeprefix("s3://")


def endpoint() -> str | None:
    """S3 endpoint of the standard AWS variables, None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


# --- local disk


def _list_local(text: str) -> Iterator[ObjectInfo]:
    path = to_path(to_uri(text))
    if not os.path.lexists(path) and any(c in text for c in WILDCARDS):
        for match in sorted(glob.glob(str(path), recursive=True, include_hidden=True)):  # noqa: PTH207
            if not Path(match).is_dir():
                yield _local_info(Path(match))
    elif path.is_dir():
        yield from _walk(path)
    elif os.path.lexists(path):
        yield _local_info(path)


def _walk(folder: Path) -> Iterator[ObjectInfo]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except PermissionError:
        yield ObjectInfo(to_uri(str(folder)), 0, "", "permission_denied")
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name)
        else:
            yield _local_info(folder / entry.name)


def _local_info(path: Path) -> ObjectInfo:
    uri = to_uri(str(path))
    try:
        status = path.stat()
    except OSError as error:  # a link to nowhere, a file behind a locked folder
        code = "permission_denied" if isinstance(error, PermissionError) else "not_found"
        return ObjectInfo(uri, 0, "", code)
    code = "" if stat.S_ISREG(status.st_mode) else "not_regular_file"
    return ObjectInfo(uri, status.st_size, f"{status.st_size:x}-{status.st_mtime_ns:x}", code)


def _raise_local(error: OSError) -> NoReturn:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise SliceError("not_found") from None
    if isinstance(error, PermissionError):
        raise SliceError("permission_denied") from None
    if isinstance(error, IsADirectoryError):
        raise SliceError("not_regular_file") from None
    raise StoreError(
        f"the disk did not answer ({error.strerror}); run the same command again to go on"
    ) from None


# --- S3


@functools.cache
def _s3() -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "max_attempts": S3_MAX_ATTEMPTS},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=POOL_CONNECTIONS,
            # servers other than AWS rarely serve bucket.host names
            s3={"addressing_style": "path" if endpoint() else "auto"},
        ),
        region_name=os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or "us-east-1",
    )


def _split_s3(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"{uri}: no bucket; write s3://bucket/prefix")
    return bucket, key


def _list_s3(text: str) -> Iterator[ObjectInfo]:
    bucket, key = _split_s3(text)
    first_wildcard = min((key.find(c) for c in WILDCARDS if c in key), default=len(key))
    prefix, is_glob = key[:first_wildcard], first_wildcard < len(key)
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    iterator = iter(pages)
    while page := _retry_s3(lambda: next(iterator, None), where=f"s3://{bucket}/{prefix}"):
        for entry in page.get("Contents", []):
            name = entry["Key"]
            below = name == key or name.startswith(key.rstrip("/") + "/") or not key
            if name.endswith("/") and entry["Size"] == 0:  # what consoles write for a folder
                continue
            if fnmatch.fnmatchcase(name, key) if is_glob else below:
                yield ObjectInfo(f"s3://{bucket}/{name}", entry["Size"], entry["ETag"].strip('"'))


def _get_s3(uri: str, start: int, length: int | None) -> bytes:
    bucket, key = _split_s3(uri)
    if start == 0 and length is None:
        return _s3().get_object(Bucket=bucket, Key=key)["Body"].read()
    end = "" if length is None else str(start + length - 1)
    return _s3().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end}")["Body"].read()


def _put_if(uri: str, data: bytes, **condition: Any) -> str | None:
    from botocore.exceptions import ClientError

    bucket, key = _split_s3(uri)

    def put() -> str | None:
        try:
            return str(_s3().put_object(Bucket=bucket, Key=key, Body=data, **condition)["ETag"])
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in {"PreconditionFailed", "412", "NoSuchKey", "404"}:
                return None
            if code in {"NotImplemented", "501"}:
                raise NotImplementedError from None
            raise  # also a conflict of two writes at once, which is to be tried again

    return _retry_s3(put, where=uri)


def _retry_s3(call: Callable[[], T], *, where: str = "") -> T:
    """Run a boto3 call; with `where` (a listing) a refusal is the user's, else the slice's."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    reason = ""
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2**attempt)
        try:
            return call()
        except NoCredentialsError:
            raise InputError(
                "S3: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role"
            ) from None
        except ClientError as error:
            reason = str(error.response.get("Error", {}).get("Code", "unknown"))
            if reason in {"NoSuchBucket", "NoSuchKey", "404", "InvalidRange", "416"}:
                if where or reason == "NoSuchBucket":
                    raise InputError(f"{where or 'S3'}: {reason}; check the bucket") from None
                code = "not_found" if reason in {"NoSuchKey", "404"} else "truncated"
                raise SliceError(code) from None
        except BotoCoreError as error:
            reason = type(error).__name__
    if reason in {"AccessDenied", "403"}:  # refused each time, so not one of the passing ones
        if where:
            raise InputError(f"{where}: access denied; check the rights of this role")
        raise SliceError("permission_denied")
    raise StoreError(
        f"{where or 'S3'} did not answer ({reason}); run the same command again to go on"
    )
