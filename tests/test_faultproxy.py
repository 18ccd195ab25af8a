"""The proxy does to a request what its rules say, and nothing to all others."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError, ResponseStreamingError

from tests.conftest import S3Server
from tests.faultproxy import FAULTS, Fault, FaultProxy, Request, Rule

BODY = b"0123456789" * 1000


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> S3Server:
    s3.bucket("proxied")
    s3.upload("proxied", "a", BODY)
    return s3


@pytest.fixture
def proxy(bucket: S3Server) -> Iterator[FaultProxy]:
    one = FaultProxy(bucket.endpoint)
    one.start()
    yield one
    one.stop()
    assert not one.failures


@pytest.fixture
def client(proxy: FaultProxy) -> Any:
    """A client without retries."""
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=proxy.endpoint, region_name="us-east-1", config=config)


def raw(proxy: FaultProxy, method: str, path: str) -> http.client.HTTPConnection:
    host, port = proxy.endpoint.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request(method, path)
    return connection


def test_without_rules_all_is_passed_on_and_recorded(proxy: FaultProxy, client: Any) -> None:
    client.put_object(Bucket="proxied", Key="b c", Body=BODY, IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="proxied", Key="b c", Body=b"", IfNoneMatch="*")
    head = client.head_object(Bucket="proxied", Key="b c")
    assert head["ContentLength"] == len(BODY)
    part = client.get_object(Bucket="proxied", Key="b c", Range="bytes=10-19")
    assert part["Body"].read() == BODY[10:20]
    assert [o["Key"] for o in client.list_objects_v2(Bucket="proxied")["Contents"]] == ["a", "b c"]
    client.delete_object(Bucket="proxied", Key="b c")
    assert proxy.requests == [
        Request("PUT", "/proxied/b%20c"),
        Request("PUT", "/proxied/b%20c"),
        Request("HEAD", "/proxied/b%20c"),
        Request("GET", "/proxied/b%20c", "bytes=10-19"),
        Request("GET", "/proxied?list-type=2&encoding-type=url"),
        Request("DELETE", "/proxied/b%20c"),
    ]


def test_the_host_header_arrives_as_it_was_signed(
    proxy: FaultProxy, bucket: S3Server, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = []
    monkeypatch.setattr(bucket, "fault", lambda environ: hosts.append(environ["HTTP_HOST"]))
    client.head_object(Bucket="proxied", Key="a")
    assert hosts == [proxy.endpoint.removeprefix("http://")]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("denied", 403, "AccessDenied"), ("expired", 400, "ExpiredToken"), ("busy", 503, "SlowDown")],
)
def test_a_refusal_has_its_code_and_the_next_request_passes(
    proxy: FaultProxy, client: Any, name: str, status: int, code: str
) -> None:
    proxy.use(Rule(FAULTS[name], times=1))
    with pytest.raises(ClientError) as caught:
        client.get_object(Bucket="proxied", Key="a")
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert client.get_object(Bucket="proxied", Key="a")["Body"].read() == BODY
    assert [r.fault for r in proxy.requests] == [name, ""]
    proxy.use(Rule(FAULTS[name]))
    with pytest.raises(ClientError) as caught:
        client.head_object(Bucket="proxied", Key="a")  # which has no body
    assert caught.value.response["Error"]["Code"] == str(status)


@pytest.mark.parametrize(("name", "is_done"), [("reset", False), ("lost", True)])
def test_a_connection_is_reset_before_a_write_or_after_it(
    proxy: FaultProxy, bucket: S3Server, name: str, is_done: bool
) -> None:
    proxy.use(Rule(FAULTS[name], lambda request: request.method == "PUT"))
    connection = raw(proxy, "PUT", f"/proxied/{name}")
    with pytest.raises(ConnectionResetError):
        connection.getresponse()
    connection.close()
    keys = [o["Key"] for o in bucket.client().list_objects_v2(Bucket="proxied")["Contents"]]
    assert (name in keys) == is_done


def test_a_cut_body_has_its_whole_length_in_the_header_and_half_of_its_bytes(
    proxy: FaultProxy, client: Any
) -> None:
    proxy.use(Rule(FAULTS["cut"]))
    answer = client.get_object(Bucket="proxied", Key="a")
    assert answer["ContentLength"] == len(BODY)
    assert answer["Body"].read(len(BODY) // 2) == BODY[: len(BODY) // 2]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        answer["Body"].read()
    answer["Body"].close()


def test_a_slow_body_arrives_whole(proxy: FaultProxy, client: Any) -> None:
    proxy.use(Rule(FAULTS["slow"]))
    assert client.get_object(Bucket="proxied", Key="a")["Body"].read() == BODY


def test_a_rule_fails_the_nth_request_that_it_matches(proxy: FaultProxy) -> None:
    proxy.use(Rule(FAULTS["busy"], lambda request: request.path == "/proxied/a", skip=2, times=1))
    statuses = []
    for name in "abaaba":
        connection = raw(proxy, "GET", f"/proxied/{name}")
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses == [403, 404, 403, 503, 404, 403]


def test_a_part_of_the_requests_fails_the_same_part_with_the_same_seed(
    proxy: FaultProxy, client: Any
) -> None:
    def failed(seed: int) -> list[int]:
        proxy.use(Rule(Fault("none"), probability=0.3), seed=seed)
        for n in range(60):
            client.list_objects_v2(Bucket="proxied", Prefix=f"none{n}")
        return [n for n, request in enumerate(proxy.requests) if request.fault]

    once = failed(1)
    assert 8 <= len(once) <= 28
    assert failed(1) == once
    assert failed(2) != once


def test_many_kept_connections_are_served_at_once(proxy: FaultProxy, client: Any) -> None:
    url = client.generate_presigned_url("get_object", Params={"Bucket": "proxied", "Key": "a"})
    path = url.removeprefix(proxy.endpoint)
    connections = [raw(proxy, "GET", path) for _ in range(100)]
    for _ in range(2):
        assert all(c.getresponse().read() == BODY for c in connections)
        assert all(c.sock is not None for c in connections), "a connection was not kept"
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda c: c.request("GET", path), connections))
    assert all(c.getresponse().read() == BODY for c in connections)
    for connection in connections:
        connection.close()
    assert len(proxy.requests) == 300
