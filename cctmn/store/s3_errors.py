"""What S3 and other servers answer, what each answer becomes, and which requests are repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from cctmn.errors import CctmnError, InputError, ObjectError, StoreError

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

# Attempts of this module, for what botocore does not repeat: bodies that are cut, brief 403s.
ATTEMPTS = 4
# The first pause between them; it doubles each time.
BACKOFF_S = 0.2

# A HEAD has no body, so the code of its failure is the status.
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
    "AllAccessDisabled": "all access to the bucket is disabled; ask its owner",
    "AccountProblem": "the account of this key has a problem; ask its owner",
    "NotSignedUp": "the account of this key is not signed up for S3; ask its owner",
    "InvalidSecurity": "the credentials are not valid; check AWS_ACCESS_KEY_ID",
}
OTHER_REGION: Final = frozenset({"PermanentRedirect", "301", "AuthorizationHeaderMalformed"})
DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden"})
# A write on a condition: another one holds the object, or the server knows no conditions.
CONDITION_FAILED: Final = frozenset({"PreconditionFailed", "412", "NoSuchKey", "404"})
NOT_IMPLEMENTED: Final = frozenset({"NotImplemented", "501"})
# 4xx that pass; all other 4xx are final.
PASSING: Final = frozenset({408, 429})
_AGAIN: Final = "run the same command again to resume"
# What the user can do about a failure before the server was reached, by botocore's exception.
BEFORE_THE_SERVER: Final = {
    "NoCredentialsError": "no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "use a role, or for a public bucket --anonymous",
    "PartialCredentialsError": "half of the credentials for S3 are missing; set AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY, or use a role",
    "ProfileNotFound": "AWS_PROFILE names a profile that does not exist; check ~/.aws/config",
    "ConfigParseError": "~/.aws/config or ~/.aws/credentials is not valid; correct it",
    "EndpointResolutionError": "AWS_ENDPOINT_URL is not http://HOST:PORT or https://HOST; "
    "correct it",
    "ParamValidationError": "not a bucket and key that S3 allows; check the name",
}

Use = Literal["object", "listing", "writing"]
T = TypeVar("T")


def repeat(call: Callable[[], T], uri: str, *, on: Use = "object") -> T:
    """Run a boto3 call, and again where it fails for a moment.

    Raises ObjectError where the server refuses one object to read, and InputError where it refuses
    a bucket, a listing or a write, or the credentials. StoreError: it did not answer.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    failure: BotoCoreError | ClientError | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0, BACKOFF_S * 2**attempt))  # noqa: S311 - spread, not secret
        try:
            return call()
        except ClientError as error:
            failure = error
            if not _passes_unseen(error):
                break
        except BotoCoreError as error:
            failure = error
            if not isinstance(
                error, IncompleteReadError | ReadTimeoutError | ResponseStreamingError
            ):
                break
    assert failure is not None
    raise _error(failure, uri, on=on) from None


def code_of(error: ClientError) -> str:
    """Return the code of a refusal, "unknown" without one."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _passes_unseen(error: ClientError) -> bool:
    """Return whether a refusal may be gone a moment later, although botocore takes it for final.

    Servers refuse valid keys for a moment (403) where their rights or clocks are not in step.
    """
    return code_of(error) in DENIED | {"ExpiredToken", "200"}


def _may_pass(error: ClientError) -> bool:
    """Return whether a refusal, repeated in vain, may be gone at the next run."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    return status >= 500 or status in PASSING or _passes_unseen(error)


def _before_the_server(error: BotoCoreError) -> str:
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((BEFORE_THE_SERVER[name] for name in names if name in BEFORE_THE_SERVER), "")


def _error(error: BotoCoreError | ClientError, uri: str, *, on: Use) -> CctmnError:
    """Return the error of this package for what boto3 raised in the end."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return _unreached(error, uri)
    code = code_of(error)
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
        return StoreError(f"S3 did not answer ({code}); {_AGAIN}", uri)
    if on == "object":
        return ObjectError("storage_refused", uri)
    return InputError(f"S3 refuses this ({code}); check the bucket and the endpoint", uri)


def _unreached(error: BotoCoreError, uri: str) -> CctmnError:
    """Return the error for a server that was not reached, or whose answer was cut."""
    from botocore.exceptions import ProxyConnectionError, SSLError

    if sentence := _before_the_server(error):
        return InputError(sentence, uri)
    if isinstance(error, ProxyConnectionError):
        return StoreError("the proxy did not answer; check HTTP_PROXY and HTTPS_PROXY", uri)
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreError(
            "the certificate of the server is not trusted (SSLError); set AWS_CA_BUNDLE to the "
            "certificate of its authority",
            uri,
        )
    name = type(error).__name__
    if name == "HTTPClientError":  # itself, and none of its kinds: certificate file or proxy
        return StoreError(
            f"S3 was not reached ({name}); check AWS_CA_BUNDLE, HTTP_PROXY and HTTPS_PROXY", uri
        )
    return StoreError(f"S3 did not answer ({name}); {_AGAIN}", uri)
