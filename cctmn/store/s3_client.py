"""The one S3 client of a process: endpoint, region, certificates, proxies, profile and credentials.

All of it comes from the standard AWS variables and files, as boto3 reads them. Every read and every
write goes through this client. Only the modules `s3*.py` import boto3.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cctmn.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Attempts inside botocore, with exponential back-off; AWS_MAX_ATTEMPTS sets another number.
MAX_ATTEMPTS = 8
# More than the fetch threads of one process.
POOL_CONNECTIONS = 64
CONNECT_S: Final = 5
READ_S: Final = 30
# boto3 itself reads only AWS_DEFAULT_REGION.
REGION_VARIABLE: Final = "AWS_REGION"
DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True)
class Access:
    """How the buckets of others are read: all but those of `own`, the URIs of OUT and MODEL."""

    anonymous: bool = False  # unsigned, for public buckets
    requester_pays: bool = False
    own: tuple[str, ...] = ()

    def is_other(self, bucket: str) -> bool:
        """Return whether a bucket is neither that of OUT nor that of MODEL."""
        return not any(f"{uri}/".startswith(f"s3://{bucket}/") for uri in self.own)


_access = Access()


def set_access(access: Access) -> None:
    """Read buckets of others like this from now on, in this process."""
    global _access  # one per process, as the client is
    _access = access


def client(bucket: str) -> S3Client:
    """Return the client for a bucket. Raises InputError for an endpoint or region of wrong form."""
    return _client(anonymous=_access.anonymous and _access.is_other(bucket))


def read_arguments(bucket: str) -> dict[str, Any]:
    """Return what a request to read from a bucket has beside the bucket and key."""
    pays = _access.requester_pays and _access.is_other(bucket)
    return {"RequestPayer": "requester"} if pays else {}


@functools.cache
def _client(*, anonymous: bool) -> S3Client:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session()
    region = os.environ.get(REGION_VARIABLE) or session.region_name or DEFAULT_REGION
    options: dict[str, Any] = {
        "retries": {
            "mode": "standard",
            "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or MAX_ATTEMPTS),
        },
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "max_pool_connections": POOL_CONNECTIONS,
    }
    if anonymous:
        options["signature_version"] = UNSIGNED
    try:
        made = session.client("s3", region_name=region, config=Config(**options))
        if _is_aws(made.meta.endpoint_url):
            return made
        # Servers other than AWS rarely serve bucket.host names, and some refuse the checksums that
        # boto3 adds to every body.
        styles = {"addressing_style": "path"} | (getattr(made.meta.config, "s3", None) or {})
        options |= {
            "s3": styles,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        return session.client("s3", region_name=region, config=Config(**options))
    except ValueError as error:  # an endpoint or region of wrong form
        raise InputError(
            f"S3: {error}; correct AWS_REGION or AWS_ENDPOINT_URL, http://HOST:PORT or https://HOST"
        ) from None


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def clear() -> None:
    """Forget the client, so that the next one reads variables and files anew."""
    _client.cache_clear()
