"""One writer on S3: a lock object with a lease, on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from cctmn import folder, lease, store
from cctmn.errors import ResumeError, StoreError
from tests.conftest import S3Server

LOST = r"the lock .* stopped"


@pytest.fixture
def out(s3: S3Server, request: pytest.FixtureRequest) -> str:
    name = f"lease-{abs(hash(request.node.name)) % 10**12}"
    s3.bucket(name)
    return f"s3://{name}/out"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole seconds, for so does the server tell the time."""
    monkeypatch.setattr(lease, "REFRESH_S", 0.3)
    monkeypatch.setattr(lease, "LEASE_S", 3.0)


def lock(out: str) -> str:
    return f"{out}/private/lock"


def foreign(out: str, **changes: Any) -> None:
    """The lock of a writer elsewhere."""
    holder = {"owner": "other", "host": "node7", "pid": 4711, "machine": "x", "submission": ""}
    store.put(lock(out), json.dumps(holder | changes).encode())


def test_conditional_writes(s3: S3Server, out: str) -> None:
    first = store.put_if_absent(lock(out), b"1")
    assert first is not None
    assert store.put_if_absent(lock(out), b"2") is None
    second = store.put_if_match(lock(out), b"3", etag=first)
    assert second is not None
    assert store.put_if_match(lock(out), b"4", etag=first) is None
    there = store.read_version(lock(out))
    assert there is not None
    assert (there.data, there.etag) == (b"3", second)
    assert 0 <= there.age_s < 5
    store.delete(lock(out))
    assert store.read_version(lock(out)) is None
    assert store.put_if_match(lock(out), b"5", etag=second) is None


def test_the_lock_says_who_and_goes_at_the_end(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"metadata": {"job_submission_id": "cctmn-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    with folder.only_writer(out):
        said = json.loads(store.read_all(lock(out)))
        assert (said["pid"], said["submission"]) == (os.getpid(), "cctmn-1")
        began = time.monotonic()
        with pytest.raises(ResumeError, match=rf"job cctmn-1 .*process {os.getpid()}.*another OUT"):
            folder.only_writer(out).__enter__()
        assert time.monotonic() - began < 10
    assert store.read_optional(lock(out)) is None


def test_of_many_takers_one_wins(out: str) -> None:
    def take(_: int) -> ExitStack | None:
        stack = ExitStack()
        try:
            stack.enter_context(lease.held(lock(out)))
        except ResumeError:
            return None
        return stack

    for dead in (False, True):
        if dead:
            foreign(out, machine=lease._machine(), pid=2**22 + 1)
        with ThreadPoolExecutor(8) as pool:
            won = [stack for stack in pool.map(take, range(8)) if stack is not None]
        assert len(won) == 1
        won[0].close()


def test_a_silent_holder_is_taken_over_when_its_lease_ends(out: str, short: None) -> None:
    foreign(out)
    with pytest.raises(ResumeError, match="process 4711 on node7"):
        lease.held(lock(out)).__enter__()
    time.sleep(lease.LEASE_S + 1.5)
    with lease.held(lock(out)):
        assert json.loads(store.read_all(lock(out)))["pid"] == os.getpid()


def test_a_living_holder_outlasts_its_lease(out: str, short: None) -> None:
    with lease.held(lock(out)):
        time.sleep(lease.LEASE_S + 1.5)
        with pytest.raises(ResumeError, match="is writing here"):
            lease.held(lock(out)).__enter__()


def test_a_killed_process_of_this_machine_is_no_holder(s3: S3Server, out: str) -> None:
    code = (
        "import sys, time\n"
        "from cctmn import folder\n"
        "with folder.only_writer(sys.argv[1]): print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ResumeError, match=f"process {process.pid}"):
        folder.only_writer(out).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with folder.only_writer(out):
        pass


@pytest.mark.parametrize("how", ["gone", "foreign"])
def test_a_holder_whose_lock_is_lost_stops(out: str, short: None, how: str) -> None:
    began = time.monotonic()
    with pytest.raises(ResumeError, match=LOST) as raised, folder.only_writer(out):
        store.delete(lock(out)) if how == "gone" else foreign(out)
        time.sleep(20)  # what the main thread is busy with
    assert time.monotonic() - began < 5
    assert ("node7" in str(raised.value)) == (how == "foreign")
    assert (store.read_optional(lock(out)) is None) == (how == "gone")


def test_a_holder_that_cannot_refresh_stops_before_its_lease_ends(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(*args: object, **options: object) -> None:
        raise StoreError("S3 did not answer")

    with pytest.raises(ResumeError, match=LOST), folder.only_writer(out):
        monkeypatch.setattr(store, "put_if_match", silence)
        began = time.monotonic()
        time.sleep(20)
    assert time.monotonic() - began < lease.LEASE_S


def test_an_answer_lost_on_the_way_is_no_lost_lock(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write was done, and the client's own retry then meets its result."""
    put = store.put_if_match
    lost = threading.Event()

    def deaf(uri: str, data: bytes, *, etag: str) -> str | None:
        answer = put(uri, data, etag=etag)
        if not lost.is_set():
            lost.set()
            return None
        return answer

    monkeypatch.setattr(store, "put_if_match", deaf)
    with folder.only_writer(out):
        assert lost.wait(5)
        time.sleep(1)


@pytest.fixture(params=["refuses", "ignores"])
def simple_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server without conditional writes."""
    if request.param == "refuses":

        def refuse(*args: object, **options: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(store, "put_if_absent", refuse)
        monkeypatch.setattr(store, "put_if_match", refuse)
    else:

        def ignore(uri: str, data: bytes, **condition: object) -> str:
            store.put(uri, data)
            there = store.read_version(uri)
            assert there is not None
            return there.etag

        monkeypatch.setattr(store, "put_if_absent", ignore)
        monkeypatch.setattr(store, "put_if_match", ignore)
    return str(request.param)


def test_a_server_without_conditional_writes_is_told_once(
    out: str, short: None, simple_server: str
) -> None:
    said: list[str] = []

    def report(text: str, *, transient: bool = False) -> None:
        said.append(text)

    with folder.only_writer(out, report=report):
        time.sleep(1)
        with pytest.raises(ResumeError):  # what can be seen is still heeded
            folder.only_writer(out).__enter__()
    assert len(said) == 1
    assert "conditional writes" in said[0]
    assert store.read_optional(lock(out)) is None
