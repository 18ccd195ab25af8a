"""A server that refuses, stumbles and hides: what each answer becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn import store
from cctmn.errors import CctmnError, InputError, ObjectError, StoreError
from cctmn.read.listing import list_inputs
from cctmn.store import s3 as s3_module
from cctmn.store import s3_client, s3_errors
from tests.conftest import S3Server

KEYS = [f"in/{n}.png" for n in range(8)]


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A bucket of eight objects that is listed in pages of three."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
    monkeypatch.setattr(s3_module, "PAGE_KEYS", 3)
    s3_client.clear()
    s3.bucket("faults")
    for key in KEYS:
        s3.upload("faults", key, b"x")
    s3_client.clear()
    yield s3
    s3.fault = None
    s3_client.clear()


def failing(
    status: str, code: str, *, times: int, when: Callable[[dict[str, Any]], bool]
) -> Callable[[dict[str, Any]], tuple[str, str] | None]:
    left = times

    def fault(environ: dict[str, Any]) -> tuple[str, str] | None:
        nonlocal left
        if left == 0 or not when(environ):
            return None
        left -= 1
        return status, code

    return fault


def later_page(environ: dict[str, Any]) -> bool:
    return "continuation-token" in environ["QUERY_STRING"]


def is_listing(environ: dict[str, Any]) -> bool:
    return "list-type" in environ["QUERY_STRING"]


def of_object(environ: dict[str, Any]) -> bool:
    return bool(environ["PATH_INFO"] == "/faults/in/3.png")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("403 Forbidden", "AccessDenied"),
        ("400 Bad Request", "ExpiredToken"),
        ("503 Service Unavailable", "SlowDown"),
        ("500 Internal Server Error", "InternalError"),
    ],
)
def test_a_page_that_fails_once_shortens_no_listing(
    bucket: S3Server, status: str, code: str
) -> None:
    bucket.fault = failing(status, code, times=1, when=later_page)
    assert [o.uri for o in store.list_objects("s3://faults/in")] == [
        f"s3://faults/{key}" for key in KEYS
    ]


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        ("403 Forbidden", "AccessDenied", InputError, "access denied; .* s3:ListBucket"),
        ("403 Forbidden", "InvalidAccessKeyId", InputError, "access key is not known"),
        ("403 Forbidden", "SignatureDoesNotMatch", InputError, "secret key is wrong"),
        ("400 Bad Request", "ExpiredToken", InputError, "session token has expired"),
        ("301 Moved", "PermanentRedirect", InputError, "in another region; set AWS_REGION"),
        ("404 Not Found", "NoSuchBucket", InputError, "no such bucket"),
        ("503 Service Unavailable", "SlowDown", StoreError, "did not answer .SlowDown."),
        ("400 Bad Request", "Strange", InputError, "S3 refuses this .Strange."),
    ],
)
def test_a_listing_that_always_fails_says_why(
    bucket: S3Server, status: str, code: str, error: type[CctmnError], message: str
) -> None:
    for when in (is_listing, later_page):
        bucket.fault = failing(status, code, times=-1, when=when)
        with pytest.raises(error, match=message):
            list(store.list_objects("s3://faults/in"))


@pytest.mark.parametrize(
    ("status", "code", "row"),
    [
        ("403 Forbidden", "InvalidObjectState", "archived"),
        ("400 Bad Request", "KMS.DisabledException", "storage_refused"),
        ("400 Bad Request", "InvalidRequest", "storage_refused"),
        ("405 Method Not Allowed", "MethodNotAllowed", "storage_refused"),
        ("451 Unavailable", "UnavailableForLegalReasons", "storage_refused"),
        ("403 Forbidden", "AccessDenied", "permission_denied"),
        ("404 Not Found", "NoSuchKey", "not_found"),
    ],
)
def test_what_is_wrong_with_one_object_is_its_code(
    bucket: S3Server, status: str, code: str, row: str
) -> None:
    bucket.fault = failing(status, code, times=-1, when=of_object)
    with pytest.raises(ObjectError) as caught:
        store.read_all("s3://faults/in/3.png")
    assert caught.value.code == row
    assert store.read_all("s3://faults/in/4.png") == b"x"


def codes(place: Path) -> dict[str, str]:
    return {info.uri: info.error_code for info in list_inputs([str(place)])}


def test_a_line_of_a_manifest_is_a_name_and_no_pattern(bucket: S3Server, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\ns3://faults/in/[3].png\ns3a://faults/in/4.png\nS3://faults/none\n")
    assert codes(manifest) == {
        "s3://faults/in/[3].png": "not_found",
        "s3://faults/in/4.png": "",
        "s3://faults/none": "not_found",
    }
    bucket.upload("faults", "in/[3].png", b"y")
    assert codes(manifest)["s3://faults/in/[3].png"] == ""
    assert [o.uri for o in store.list_objects("s3://faults/in/[3].png")] == [
        "s3://faults/in/[3].png"
    ]


def test_a_lookup_that_fails_is_not_a_missing_object(bucket: S3Server, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\ns3://faults/in/3.png\n")
    bucket.fault = failing("403 Forbidden", "AccessDenied", times=1, when=of_object)
    assert codes(manifest) == {"s3://faults/in/3.png": ""}
    bucket.fault = failing("503 Service Unavailable", "SlowDown", times=-1, when=of_object)
    assert codes(manifest) == {"s3://faults/in/3.png": "storage_failed"}
    bucket.fault = failing(
        "503 Service Unavailable", "SlowDown", times=-1, when=lambda environ: True
    )
    with pytest.raises(StoreError, match="did not answer"):
        codes(manifest)
