"""Objects of S3 and of servers that speak its protocol, by s3:// URI; implements Source and Sink.

Endpoint, region and credentials come from the standard AWS variables. This is the only file that
imports boto3.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from cctmn.errors import CctmnError, InputError, ObjectError, StoreError
from cctmn.store.protocols import ObjectInfo, Traits, Version
from cctmn.store.uri import WILDCARDS

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

# Retries inside botocore, with exponential back-off.
MAX_ATTEMPTS = 8
# Retries of this module, for what botocore does not retry: bodies that are cut, brief 403s.
READ_ATTEMPTS = 4
# The first pause between those retries; it doubles each time.
BACKOFF_S = 0.2
# Objects per request of a listing; servers allow no more.
PAGE_KEYS = 1000
# More than the fetch threads of one process.
POOL_CONNECTIONS = 64

# What S3 and other servers answer. A HEAD has no body, so its code is the status.
#
# Codes of one object -> the code of its row.
OF_OBJECT: Final = {
    "NoSuchKey": "not_found",
    "NotFound": "not_found",
    "404": "not_found",
    "InvalidRange": "truncated",
    "416": "truncated",
    "InvalidObjectState": "archived",
    "MethodNotAllowed": "storage_refused",  # a delete marker, by its version
    "405": "storage_refused",
    "UnavailableForLegalReasons": "storage_refused",
    "451": "storage_refused",
    "InvalidRequest": "storage_refused",  # encrypted with a key of the customer (SSE-C)
}
# Encrypted with a key that is disabled or out of reach.
OF_OBJECT_PREFIX: Final = ("KMS.", "AWS.KMS")
# Codes of what the user can correct -> what is wrong; what to do.
OF_USER: Final = {
    "NoSuchBucket": "no such bucket; check its name",
    "InvalidBucketName": "not the name of a bucket; write s3://bucket/prefix",
    "InvalidAccessKeyId": "the access key is not known; check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get a new one and run the same command again",
    "InvalidToken": "the session token is not valid; get a new one and run the same command again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "RequestExpired": "the clock of this machine is wrong; set it",
}
OTHER_REGION: Final = frozenset({"PermanentRedirect", "301", "AuthorizationHeaderMalformed"})
DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})
# 4xx that pass; all other 4xx are final.
PASSING: Final = frozenset({408, 429})

T = TypeVar("T")

# Every listing of S3 costs money.
traits: Final = Traits(file_locks=False, whole_writes=True, list_period_s=15.0)


def list_objects(text: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a prefix or glob, or the object itself."""
    bucket, key = _split(text)
    first_wildcard = min((key.find(c) for c in WILDCARDS if c in key), default=len(key))
    prefix, is_glob = key[:first_wildcard], first_wildcard < len(key)
    if is_glob and (literal := look_up(text)):  # a name may hold the characters of a glob
        yield literal
        return
    for page in _pages(bucket, prefix):
        for entry in page.get("Contents", []):
            name = entry["Key"]
            below = name == key or name.startswith(key.rstrip("/") + "/") or not key
            # Consoles write an empty object with a slash at its end for a folder.
            if name.endswith("/") and entry["Size"] == 0:
                continue
            if fnmatch.fnmatchcase(name, key) if is_glob else below:
                yield ObjectInfo(f"s3://{bucket}/{name}", entry["Size"], entry["ETag"].strip('"'))


def _pages(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing.

    Each page is one request with the token of the page before, and is repeated by itself: a
    paginator that has failed once is exhausted, and would end the listing too early.
    """
    position: dict[str, Any] = {"MaxKeys": PAGE_KEYS}
    while True:
        asked = {"Bucket": bucket, "Prefix": prefix} | position
        page: dict[str, Any] = _retry(
            functools.partial(_call, "list_objects_v2", asked),
            f"s3://{bucket}/{prefix}",
            on="listing",
        )
        yield page
        if not page.get("IsTruncated"):
            return
        position["ContinuationToken"] = page["NextContinuationToken"]


def _call(operation: str, arguments: dict[str, Any]) -> Any:
    return getattr(_client(), operation)(**arguments)


def look_up(uri: str) -> ObjectInfo | None:
    """Return the object of exactly this name, None where there is none."""
    bucket, key = _split(uri)
    try:
        head = _retry(lambda: _client().head_object(Bucket=bucket, Key=key), uri)
    except ObjectError as error:
        if error.code == "not_found":
            _check_bucket(bucket)
            return None
        return ObjectInfo(uri, 0, "", error.code)
    return ObjectInfo(uri, head["ContentLength"], head["ETag"].strip('"'))


@functools.cache
def _check_bucket(bucket: str) -> None:
    """Raise InputError if there is no such bucket, which the answer to a HEAD does not tell."""
    from botocore.exceptions import ClientError

    try:
        _client().list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:  # a role may have no right to list
        if _code_of(error) == "NoSuchBucket":
            raise InputError(OF_USER["NoSuchBucket"], f"s3://{bucket}") from None


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
    _retry(lambda: _client().put_object(Bucket=bucket, Key=key, Body=data), uri, on="writing")


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


def delete(uri: str) -> None:
    """Remove an object; a missing one is not an error."""
    bucket, key = _split(uri)
    _retry(lambda: _client().delete_object(Bucket=bucket, Key=key), uri, on="writing")


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

    return _retry(put, uri, on="writing")


def _retry(
    call: Callable[[], T], uri: str, *, on: Literal["object", "listing", "writing"] = "object"
) -> T:
    """Run a boto3 call, and again where it fails for a moment.

    Raises ObjectError where the server refuses one object to read, and InputError where it refuses
    a bucket, a listing or a write, or the credentials. StoreError: it did not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    failure: BotoCoreError | ClientError | None = None
    for attempt in range(READ_ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0, BACKOFF_S * 2**attempt))  # noqa: S311 - spread, not secret
        try:
            return call()
        except ClientError as error:
            failure = error
            if not _may_pass(error):
                break
        except BotoCoreError as error:
            failure = error
            if _sentence(error) is not None:
                break
    assert failure is not None
    raise _error(failure, uri, on=on) from None


def _may_pass(error: ClientError) -> bool:
    """Return whether a refusal may be gone a moment later.

    Servers refuse valid keys for a moment (403) where their rights or clocks are not in step.
    """
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    code = _code_of(error)
    return status >= 500 or status in PASSING or code in DENIED or code in ("ExpiredToken", "200")


def _sentence(error: BotoCoreError) -> str | None:
    """Return what the user can do about a failure before the server was reached, None: nothing."""
    from botocore import exceptions as of

    if isinstance(error, of.NoCredentialsError | of.PartialCredentialsError):
        return (
            "no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
        )
    if isinstance(error, of.ProfileNotFound):
        return "AWS_PROFILE names a profile that does not exist; check ~/.aws/config"
    if isinstance(error, of.ParamValidationError):
        return "not a bucket and key that S3 allows; check the name"
    return None


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _error(error: BotoCoreError | ClientError, uri: str, *, on: str) -> CctmnError:
    """Return the error of this package for what boto3 raised in the end."""
    from botocore.exceptions import ClientError, ProxyConnectionError

    if not isinstance(error, ClientError):
        if (sentence := _sentence(error)) is not None:
            return InputError(sentence, uri)
        name = type(error).__name__
        if isinstance(error, ProxyConnectionError):
            return StoreError("the proxy did not answer; check HTTP_PROXY and HTTPS_PROXY", uri)
        return StoreError(f"S3 did not answer ({name}); run the same command again to resume", uri)
    code = _code_of(error)
    if code in OF_USER:
        return InputError(OF_USER[code], uri)
    if code in OTHER_REGION:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = error.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
        name = f"region {region}" if region else "another region"
        return InputError(f"the bucket is in {name}; set AWS_REGION to it", uri)
    if on == "object":
        if code in OF_OBJECT:
            return ObjectError(OF_OBJECT[code], uri)
        if code.startswith(OF_OBJECT_PREFIX):
            return ObjectError("storage_refused", uri)
        if code in DENIED:
            return ObjectError("permission_denied", uri)
    elif code in DENIED:
        right = "s3:ListBucket" if on == "listing" else "s3:PutObject and s3:DeleteObject"
        return InputError(f"access denied; this role needs {right}", uri)
    if _may_pass(error):
        return StoreError(f"S3 did not answer ({code}); run the same command again to resume", uri)
    return InputError(f"S3 refuses this ({code}); check the bucket and the endpoint", uri)
