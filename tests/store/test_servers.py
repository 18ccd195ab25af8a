"""The same storage and lock on moto and on real servers, which differ in conditional writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError

from cctmn import folder, lease, store
from cctmn.errors import InputError, ObjectError, ResumeError, StoreError
from cctmn.store import s3 as s3_module
from cctmn.store import s3_client, s3_errors
from tests.conftest import RecordingReporter, Servers
from tests.processes import end_with_the_test_run
from tests.servers import Server, lead_to

# What each server does with a write on a condition; docs/score.md has the table.
CONDITIONAL = {"moto": True, "swift": False, "rgw": True}
HOLD = (
    "import sys, time\n"
    "from cctmn import folder\n"
    "with folder.only_writer(sys.argv[1]): print('held', flush=True); time.sleep(600)\n"
)


@pytest.fixture(autouse=True)
def _client_of_this_test() -> Iterator[None]:
    yield
    s3_client.clear()
    s3_module._check_bucket.cache_clear()


@pytest.fixture(params=["moto", "swift", "rgw", "swift over TLS", "rgw over TLS"])
def server(
    request: pytest.FixtureRequest, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Lead everything of this test to one server, and return the server's name."""
    name, _, tls = request.param.partition(" ")
    one = servers.over_tls(name) if tls else servers.plain(name)
    lead_to(one, monkeypatch)
    return name


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> str:
    name = f"servers-{abs(hash(request.node.name)) % 10**12}"
    s3_client.client("").create_bucket(Bucket=name)
    return f"s3://{name}"


def test_objects_are_listed_read_replaced_and_deleted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PAGE_KEYS", 2)
    names = ["in/a b.png", "in/deep/é.png", "in/x+y=%20.png", "in/z[1].png"]
    for name in [*names, "other"]:
        store.put(f"{bucket}/{name}", name.encode() * 3)
    listed = list(store.list_objects(f"{bucket}/in"))
    assert [o.uri for o in listed] == [f"{bucket}/{name}" for name in names]
    assert [o.size for o in listed] == [len(name.encode()) * 3 for name in names]
    uri = f"{bucket}/in/deep/é.png"
    found = store.look_up(uri)
    assert found == listed[1]
    assert store.look_up(f"{bucket}/in/deep") is None
    assert store.read_all(uri) == names[1].encode() * 3
    assert store.read_range(uri, start=3, length=4) == (names[1].encode() * 3)[3:7]
    with pytest.raises(ObjectError) as caught:
        store.read_range(uri, start=10_000, length=4)
    assert caught.value.code == "truncated"
    store.put(uri, b"new")
    changed = store.look_up(uri)
    assert changed is not None
    assert changed.etag != listed[1].etag
    store.delete(uri)
    store.delete(uri)
    assert store.read_optional(uri) is None
    with pytest.raises(InputError, match="no such bucket"):
        list(store.list_objects(f"{bucket}-none/in"))


def test_a_server_obeys_conditions_or_says_that_it_knows_none(server: str, bucket: str) -> None:
    uri = f"{bucket}/lock"
    if not CONDITIONAL[server]:
        store.put(uri, b"1")
        version = store.read_version(uri)
        assert version is not None
        with pytest.raises(NotImplementedError):
            store.put_if_absent(uri, b"2")
        with pytest.raises(NotImplementedError):
            store.put_if_match(uri, b"2", etag=version.etag)
        return
    first = store.put_if_absent(uri, b"1")
    assert first is not None
    assert store.put_if_absent(uri, b"2") is None
    second = store.put_if_match(uri, b"3", etag=first)
    assert second is not None
    assert store.put_if_match(uri, b"4", etag=first) is None
    assert store.read_all(uri) == b"3"


def test_a_living_lock_is_refreshed_and_keeps_others_out(
    server: str, bucket: str, reporter: RecordingReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "REFRESH_S", 0.2)
    lock = f"{bucket}/out/private/lock"
    with folder.only_writer(f"{bucket}/out", report=reporter):
        before = json.loads(store.read_all(lock))["writes"]
        with pytest.raises(ResumeError, match="is writing here") as refused:
            folder.only_writer(f"{bucket}/out").__enter__()
        assert refused.value.where == lock
        time.sleep(1)
        assert json.loads(store.read_all(lock))["writes"] > before
    assert store.read_optional(lock) is None
    assert len(reporter.lines) == (not CONDITIONAL[server])


def test_the_lock_of_a_killed_process_is_replaced(bucket: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, f"{bucket}/out"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_the_test_run,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
    lock = f"{bucket}/out/private/lock"
    assert json.loads(store.read_all(lock))["pid"] == process.pid
    with folder.only_writer(f"{bucket}/out"):
        assert json.loads(store.read_all(lock))["pid"] == os.getpid()


def test_a_certificate_that_is_not_trusted_is_refused(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_to(servers.over_tls("moto"), monkeypatch)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
    with pytest.raises(StoreError, match="SSLError"):
        store.read_all("s3://any/object")


@pytest.fixture(scope="module")
def limited_server(servers: Servers) -> Server:
    """A gateway, and a user of it whose rights end at a prefix of the bucket `limited`."""
    owner = servers.plain("rgw")
    who = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/limited"]}}
    objects = {
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": ["arn:aws:s3:::limited/mine/*"],
    }
    listing = {
        "Action": ["s3:ListBucket"],
        "Resource": ["arn:aws:s3:::limited"],
        "Condition": {"StringLike": {"s3:prefix": ["mine/*"]}},
    }
    policy = {"Version": "2012-10-17", "Statement": [who | objects, who | listing]}
    with pytest.MonkeyPatch.context() as patch:
        lead_to(owner, patch)
        client = s3_client.client("")
        client.create_bucket(Bucket="limited")
        client.put_bucket_policy(Bucket="limited", Policy=json.dumps(policy))
        client.put_object(Bucket="limited", Key="other/b.png", Body=b"b")
    return replace(owner, key="limited", secret="limited")


@pytest.fixture
def limited(limited_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The prefix that this user may work below."""
    lead_to(limited_server, monkeypatch)
    monkeypatch.setattr(s3_errors, "BACKOFF_S", 0.0)
    with pytest.raises(ClientError, match="403"):
        s3_client.client("").head_bucket(Bucket="limited")
    return "s3://limited/mine"


def test_a_user_with_rights_below_a_prefix_alone_reads_and_writes_there(limited: str) -> None:
    store.put(f"{limited}/in/a.png", b"a")
    [found] = store.list_objects(f"{limited}/in/")
    assert store.read_all(found.uri) == b"a"
    store.delete(found.uri)
    assert list(store.find_objects(f"{limited}/in/a.png")) == []
    with pytest.raises(ObjectError) as caught:
        store.read_all("s3://limited/other/b.png")
    assert caught.value.code == "permission_denied"
    with pytest.raises(InputError, match="s3:ListBucket"):
        list(store.list_objects("s3://limited/other/"))


def test_a_user_with_rights_below_a_prefix_alone_can_hold_the_lock(limited: str) -> None:
    with folder.only_writer(f"{limited}/out"):
        assert store.read_optional(f"{limited}/out/run.json") is None
