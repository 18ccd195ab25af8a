"""The one client: where its endpoint, region, certificates and credentials come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cctmn import store
from cctmn.errors import CctmnError, InputError
from cctmn.store import s3_client, s3_errors
from tests.conftest import S3Server

VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
)


@pytest.fixture
def nothing_set(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """No variable of AWS leads anywhere; a profile `hospital` leads to the server."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
    (tmp_path / "config").write_text(
        f"[profile hospital]\nendpoint_url = {s3.endpoint}\nregion = eu-west-3\n"
        "aws_access_key_id = test\naws_secret_access_key = test\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3_client.clear()
    yield monkeypatch
    s3_client.clear()


def test_a_profile_gives_endpoint_region_and_keys_to_reads_and_to_arrow(
    s3: S3Server, nothing_set: pytest.MonkeyPatch
) -> None:
    nothing_set.setenv("AWS_PROFILE", "hospital")
    client = s3_client.client("")
    assert client.meta.endpoint_url == s3.endpoint
    assert client.meta.region_name == "eu-west-3"
    client.create_bucket(
        Bucket="profile", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"}
    )
    filesystem, path = store.arrow_filesystem("s3://profile/a")
    with filesystem.open_output_stream(path) as file:
        file.write(b"a")
    assert store.read_all("s3://profile/a") == b"a"
    nothing_set.setenv("AWS_REGION", "eu-west-1")
    s3_client.clear()
    assert s3_client.client("").meta.region_name == "eu-west-1"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no credentials for S3; set AWS_ACCESS_KEY_ID"),
        ({"AWS_PROFILE": "clinic"}, "AWS_PROFILE names a profile that does not exist"),
        ({"AWS_PROFILE": "hospital", "AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "http://HOST:PORT"),
        ({"AWS_PROFILE": "hospital", "AWS_ENDPOINT_URL": "ftp://here"}, "http://HOST:PORT"),
        ({"AWS_PROFILE": "hospital", "AWS_REGION": "a b"}, "correct AWS_REGION"),
        ({"AWS_CONFIG_FILE": __file__}, "config or .* is not valid; correct it"),
        (
            {
                "AWS_PROFILE": "hospital",
                "AWS_ENDPOINT_URL": "https://127.0.0.1:9",
                "HTTPS_PROXY": "http://127.0.0.1:9",
            },
            "the proxy did not answer; check HTTP_PROXY",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line(
    variables: dict[str, str], message: str, nothing_set: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        nothing_set.setenv(name, value)
    for use in (
        lambda: store.read_all("s3://any/key"),
        lambda: list(store.list_objects("s3://any/key")),
        lambda: store.put("s3://any/key", b""),
    ):
        with pytest.raises(CctmnError, match=message):
            use()


def test_other_servers_are_asked_by_path_and_without_checksums(
    s3: S3Server, nothing_set: pytest.MonkeyPatch
) -> None:
    nothing_set.setenv("AWS_PROFILE", "hospital")
    config = s3_client.client("").meta.config
    assert config.s3["addressing_style"] == "path"
    assert config.request_checksum_calculation == "when_required"
    nothing_set.setenv("AWS_ENDPOINT_URL", "https://s3.eu-west-3.amazonaws.com")
    s3_client.clear()
    config = s3_client.client("").meta.config
    assert config.request_checksum_calculation == "when_supported"


def test_a_bucket_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="no bucket; write s3://bucket/prefix"):
        store.read_all("s3:///key")
