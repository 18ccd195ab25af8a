"""A lease on an output folder of S3: one writer, also after one that died without a word.

In: the URI of a lock object. Out: a `with` block that holds it. The object is written on condition
that there is none, refreshed on condition that it is still ours, and given to the next writer, on
condition that it is still the old one, when its holder has been silent for LEASE_S. A holder that
loses it is interrupted, for two writers double rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cctmn import store
from cctmn.errors import CctmnError, ResumeError
from cctmn.reporter import Reporter, silent
from cctmn.store import Version

REFRESH_S = 20.0  # a PUT each; four may fail before the lease ends
LEASE_S = 90.0  # of silence, after which a holder is taken for dead
GIVE_UP = 0.9  # of LEASE_S: a holder that cannot refresh stops before another may start
STOP_S = 5.0  # for a PUT under way; S3 that is silent must not hold up the end
# Not SIGINT or SIGTERM: a job in the background may ignore the one, and Ray answers the other.
INTERRUPT = signal.SIGUSR1
TAKES = 4  # each failed one means that another was quicker


@contextlib.contextmanager
def held(uri: str, *, report: Reporter = silent) -> Iterator[None]:
    """Hold the lock; raises ResumeError if another does, or if it is lost in the meantime."""
    lease = _Lease(uri, report=report)
    lease.take()
    try:
        try:
            yield
        finally:
            lease.stop()
    except KeyboardInterrupt:
        if lease.lost:  # this interrupt was ours
            raise ResumeError(lease.lost) from None
        raise
    finally:
        lease.release()
    if lease.lost:
        raise ResumeError(lease.lost)


class _Lease:
    """The lock object as this process sees it."""

    def __init__(self, uri: str, *, report: Reporter) -> None:
        self.lost = ""  # why, once it is
        self._uri, self._report = uri, report
        self._conditional = True  # until the server shows that it cannot
        self._etag = ""
        self._stop = threading.Event()
        self._main = threading.current_thread() is threading.main_thread()
        self._before: Any = signal.SIG_DFL  # the handler of INTERRUPT
        self._alarm = threading.Timer(0, self._lose, [""])  # a real one comes with the lock
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)
        self._holder = {
            "owner": secrets.token_hex(16),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "submission": _submission(),
            "started": _now(),
        }

    def take(self) -> None:
        """Become the holder. Raises ResumeError, which names who is."""
        began = time.monotonic()
        for _ in range(TAKES):
            there = store.read_version(self._uri)
            if there is not None and self._is_ours(there):  # an answer was lost on the way
                self._etag = there.etag
                break
            if there is not None and not _is_dead(there):
                raise ResumeError(self._refusal(there))
            if (etag := self._write(there)) is not None:
                self._etag = etag
                break
        else:
            raise ResumeError(f"{self._place}: others are about to write here; use another OUT")
        if self._conditional and (etag := self._write(None)) is not None:
            self._etag = etag  # it wrote over what was there, so it ignores conditions
            self._simple()
        if self._main:
            self._before = signal.signal(INTERRUPT, _interrupt)
        self._arm(began)
        self._thread.start()

    def stop(self) -> None:
        """End the refreshing; after this nothing of it interrupts."""
        self._stop.set()
        self._alarm.cancel()
        self._thread.join(STOP_S)
        if self._main:
            signal.signal(INTERRUPT, self._before)

    def release(self) -> None:
        """Give the lock up, if it is still ours; a failure leaves it to its lease."""
        if self.lost:
            return
        with contextlib.suppress(CctmnError):
            there = store.read_version(self._uri)
            if there is not None and self._is_ours(there):
                store.delete(self._uri)

    @property
    def _place(self) -> str:
        return self._uri.removesuffix("/private/lock")

    def _refusal(self, there: Version) -> str:
        left = max(1, round(LEASE_S - there.age_s))
        return (
            f"{self._place}: {_who(there)} is writing here (last seen {there.age_s:.0f} s ago); "
            f"wait for it or use another OUT; if it is dead, this lock gives way in {left} s"
        )

    def _is_ours(self, there: Version) -> bool:
        return _parsed(there).get("owner") == self._holder["owner"]

    def _write(self, over: Version | None) -> str | None:
        """Write our name over this version, or over nothing; the ETag if that was so."""
        body = json.dumps(self._holder | {"refreshed": _now()}).encode()
        try:
            if self._conditional and over is None:
                return store.put_if_absent(self._uri, body)
            if self._conditional and over is not None:
                return store.put_if_match(self._uri, body, etag=over.etag)
        except NotImplementedError:
            self._simple()
        store.put(self._uri, body)
        there = store.read_version(self._uri)
        return there.etag if there is not None and self._is_ours(there) else None

    def _simple(self) -> None:
        self._conditional = False
        self._report(
            f"{self._place}: this server has no conditional writes, so two writers that start in "
            "the same moment are not kept apart; start one"
        )

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_S):
            began = time.monotonic()
            with contextlib.suppress(CctmnError):  # S3 stumbles: the alarm runs on
                if not self._refreshed():
                    return
                self._arm(began)

    def _refreshed(self) -> bool:
        if self._conditional:
            etag = self._write(Version(b"", self._etag, 0.0))
            if etag is not None:
                self._etag = etag
                return True
        there = store.read_version(self._uri)
        if there is None or not self._is_ours(there):
            self._lose("is gone" if there is None else f"has gone to {_who(there)}")
            return False
        self._etag = there.etag
        return self._conditional or self._write(there) is not None

    def _arm(self, began: float) -> None:
        """Set the alarm anew, to ring where nothing was refreshed after `began`."""
        self._alarm.cancel()
        left = max(0.0, GIVE_UP * LEASE_S - (time.monotonic() - began))
        self._alarm = threading.Timer(left, self._lose, ["could not be refreshed in time"])
        self._alarm.daemon = True
        if not self._stop.is_set():
            self._alarm.start()

    def _lose(self, why: str) -> None:
        if self._stop.is_set() or self.lost:
            return
        self.lost = (
            f"{self._place}: the lock of this job {why}, so it has stopped; "
            "see that nobody else writes here and run the same command again"
        )
        if not self._main:
            return  # it is raised when the block ends
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)


def _interrupt(*_: object) -> None:
    """As Ctrl-C does, which all that runs in the block is made for."""
    raise KeyboardInterrupt


def _parsed(there: Version) -> dict[str, Any]:
    try:
        holder = json.loads(there.data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _who(there: Version) -> str:
    holder = _parsed(there)
    process = f"process {holder.get('pid', '?')} on {holder.get('host', 'a host unknown')}"
    if submission := holder.get("submission"):
        return f"job {submission} ({process})"
    return process


def _is_dead(there: Version) -> bool:
    """Whether the holder was silent for too long, or is known to have died on this machine."""
    if there.age_s > LEASE_S:
        return True
    holder = _parsed(there)
    here = bool(holder.get("machine")) and holder.get("machine") == _machine()
    return here and _born(int(holder.get("pid", 0))) != holder.get("born")


def _machine() -> str:
    """What two processes share that see each other's numbers: a boot and a name space of pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When the process started, in ticks since boot; "" if it runs no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _submission() -> str:
    """Of a job that came through Ray's Jobs API, its id."""
    with contextlib.suppress(ValueError, AttributeError):
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    return ""


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
