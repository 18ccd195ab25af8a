"""One writer per output folder on S3: a lock object with a lease, on a real S3 server."""

from __future__ import annotations

import dataclasses
import json
import os
import re
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
from tests.conftest import RecordingReporter, S3Server

LOST = r"the lock .* stopped"


@pytest.fixture
def out(s3: S3Server, request: pytest.FixtureRequest) -> str:
    name = f"lease-{abs(hash(request.node.name)) % 10**12}"
    s3.bucket(name)
    return f"s3://{name}/out"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the lease; it is a whole number of seconds, as the server's clock is."""
    monkeypatch.setattr(lease, "REFRESH_S", 0.3)
    monkeypatch.setattr(lease, "LEASE_S", 3.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.2)


def lock(out: str) -> str:
    return f"{out}/private/lock"


def foreign(out: str, **changes: Any) -> None:
    """Write the lock of a process on another machine."""
    holder = {"owner": "other", "host": "node7", "pid": 4711, "machine": "x", "submission": ""}
    store.put(lock(out), json.dumps(holder | changes).encode())


def test_conditional_writes(s3: S3Server, out: str) -> None:
    first = store.put_if_absent(lock(out), b"1")
    assert first is not None
    assert store.put_if_absent(lock(out), b"2") is None
    second = store.put_if_match(lock(out), b"3", etag=first)
    assert second is not None
    assert store.put_if_match(lock(out), b"4", etag=first) is None
    version = store.read_version(lock(out))
    assert version is not None
    assert (version.data, version.etag) == (b"3", second)
    assert version.age_s >= 0
    store.delete(lock(out))
    assert store.read_version(lock(out)) is None
    assert store.put_if_match(lock(out), b"5", etag=second) is None


def test_the_lock_names_its_holder_and_is_deleted_at_the_end(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"metadata": {"job_submission_id": "cctmn-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    with folder.only_writer(out):
        holder = json.loads(store.read_all(lock(out)))
        assert (holder["pid"], holder["submission"]) == (os.getpid(), "cctmn-1")
        with pytest.raises(ResumeError, match=rf"job cctmn-1 .*process {os.getpid()}.*another OUT"):
            folder.only_writer(out).__enter__()
    assert store.read_optional(lock(out)) is None


def test_of_many_writers_one_acquires_the_lock(out: str) -> None:
    def acquire(_: int) -> ExitStack | None:
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
            acquired = [stack for stack in pool.map(acquire, range(8)) if stack is not None]
        assert len(acquired) == 1
        acquired[0].close()


def test_a_silent_holder_of_another_machine_is_waited_for_until_its_lease_ends(
    out: str, short: None, reporter: RecordingReporter
) -> None:
    foreign(out)
    with lease.held(lock(out), report=reporter):
        assert json.loads(store.read_all(lock(out)))["pid"] == os.getpid()
    [line] = reporter.lines
    assert "process 4711 on node7" in line
    assert re.search(r"waiting at most [1-3] s", line)


def test_a_holder_that_refreshes_while_it_is_waited_for_is_refused(out: str, short: None) -> None:
    foreign(out)

    def refresh(text: str, *, transient: bool = False, names: str = "") -> None:
        foreign(out, writes=2)

    with pytest.raises(ResumeError, match="process 4711 on node7 is writing here"):
        lease.held(lock(out), report=refresh).__enter__()
    assert json.loads(store.read_all(lock(out)))["writes"] == 2


def test_a_holder_that_ends_while_it_is_waited_for_is_followed(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its lease would end."""
    monkeypatch.setattr(lease, "LOOK_S", 0.0)
    foreign(out)

    def end(text: str, *, transient: bool = False, names: str = "") -> None:
        store.delete(lock(out))

    with lease.held(lock(out), report=end):
        assert json.loads(store.read_all(lock(out)))["pid"] == os.getpid()


def test_a_holder_of_unknown_age_is_replaced_after_a_lease_without_a_refresh(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a date in the answers, the age depends on the clock of this machine."""
    read = store.read_version

    def without_age(uri: str) -> store.Version | None:
        version = read(uri)
        return version and dataclasses.replace(version, age_s=-3600.0)

    monkeypatch.setattr(store, "read_version", without_age)
    foreign(out)
    with lease.held(lock(out)):
        assert json.loads(store.read_all(lock(out)))["pid"] == os.getpid()


def test_a_living_holder_keeps_the_lock_beyond_its_lease(out: str, short: None) -> None:
    with lease.held(lock(out)):
        time.sleep(lease.LEASE_S + 1.5)
        with pytest.raises(ResumeError, match="is writing here"):
            lease.held(lock(out)).__enter__()


def test_the_lock_of_a_killed_process_of_this_machine_is_replaced_at_once(
    s3: S3Server, out: str
) -> None:
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
    finished = False
    with pytest.raises(ResumeError, match=LOST) as raised, folder.only_writer(out):
        store.delete(lock(out)) if how == "gone" else foreign(out)
        # The work of the main thread, which must not be finished.
        time.sleep(60)
        finished = True
    assert not finished
    assert ("node7" in str(raised.value)) == (how == "foreign")
    assert (store.read_optional(lock(out)) is None) == (how == "gone")


def test_a_holder_that_cannot_refresh_stops_before_its_lease_ends(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines_s: list[float] = []

    class RecordedTimer(threading.Timer):
        def __init__(self, interval: float, *args: Any) -> None:
            deadlines_s.append(interval)
            super().__init__(interval, *args)

    def fail(*args: object, **options: object) -> None:
        raise StoreError("S3: did not answer; run the same command again to resume")

    monkeypatch.setattr(threading, "Timer", RecordedTimer)
    finished = False
    with pytest.raises(ResumeError, match=LOST), folder.only_writer(out):
        monkeypatch.setattr(store, "put_if_match", fail)
        time.sleep(60)
        finished = True
    assert not finished
    assert max(deadlines_s) <= lease.GIVE_UP * lease.LEASE_S < lease.LEASE_S


def test_a_lost_response_is_not_a_lost_lock(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch, reporter: RecordingReporter
) -> None:
    """The write was done, and the client's own retry then meets its result."""
    put = store.put_if_match
    lost = threading.Event()

    def put_without_answer(uri: str, data: bytes, *, etag: str) -> str | None:
        response = put(uri, data, etag=etag)
        if not lost.is_set():
            lost.set()
            return None
        return response

    with folder.only_writer(out, report=reporter):
        monkeypatch.setattr(store, "put_if_match", put_without_answer)
        assert lost.wait(5)
        time.sleep(1)
    assert reporter.lines == []


def test_every_refusal_names_the_lock(
    out: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(out, machine=lease._machine(), pid=1, born=lease._process_start_ticks(1))
    with pytest.raises(ResumeError, match="process 1 on node7") as refused:
        lease.held(lock(out)).__enter__()
    assert refused.value.where == lock(out)
    store.delete(lock(out))
    monkeypatch.setattr(store, "put_if_absent", lambda *_: None)
    with pytest.raises(ResumeError, match="other jobs") as refused:
        lease.held(lock(out)).__enter__()
    assert refused.value.where == lock(out)
    monkeypatch.undo()
    with pytest.raises(ResumeError, match=LOST) as refused, lease.held(lock(out)):
        store.delete(lock(out))
        time.sleep(60)
    assert refused.value.where == lock(out)


def test_an_etag_is_also_tried_without_its_quotes(s3: S3Server, out: str) -> None:
    """Ceph's gateway refuses an ETag in the quotes that it gave itself."""
    s3.fault = lambda environ: (
        ("412 Precondition Failed", "PreconditionFailed")
        if environ.get("HTTP_IF_MATCH", "").startswith('"')
        else None
    )
    try:
        first = store.put_if_absent(lock(out), b"1")
        assert first is not None
        assert store.put_if_match(lock(out), b"2", etag=first) is not None
        assert store.put_if_match(lock(out), b"3", etag=first) is None
        assert store.read_all(lock(out)) == b"2"
    finally:
        s3.fault = None


@pytest.fixture(params=["refuses", "ignores", "ignores If-Match", "never matches"])
def unconditional_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A server without conditional writes, or with one half of them."""
    if request.param == "never matches":
        monkeypatch.setattr(store, "put_if_match", lambda *_, **__: None)
    elif request.param == "refuses":

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

        if request.param == "ignores":
            monkeypatch.setattr(store, "put_if_absent", ignore)
        monkeypatch.setattr(store, "put_if_match", ignore)
    return str(request.param)


def test_a_server_without_conditional_writes_is_reported_once(
    out: str, short: None, unconditional_server: str, reporter: RecordingReporter
) -> None:
    with folder.only_writer(out, report=reporter):
        time.sleep(1)
        # A lock that can be seen is still obeyed.
        with pytest.raises(ResumeError):
            folder.only_writer(out).__enter__()
    [line] = reporter.lines
    assert "conditional writes" in line
    assert store.read_optional(lock(out)) is None


def test_a_lock_stays_fresh_and_a_dead_one_is_replaced_without_conditional_writes(
    out: str, short: None, unconditional_server: str
) -> None:
    foreign(out, machine=lease._machine(), pid=2**22 + 1)
    with folder.only_writer(out):
        before = json.loads(store.read_all(lock(out)))
        assert before["pid"] == os.getpid()
        time.sleep(1)
        assert json.loads(store.read_all(lock(out)))["writes"] > before["writes"]
