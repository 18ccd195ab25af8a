"""A lock with a lease for storage without file locks: an output folder has one writer at a time.

The lock is an object. A writer creates it on condition that there is none, and refreshes it on
condition that nobody has replaced it. A holder that has not refreshed it for LEASE_S is taken for
dead, and the next writer replaces its lock. Until then only a refresh shows that a holder on
another machine lives, so the next writer waits for either. A holder that loses its lock is
interrupted, because two writers would write rows twice.
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

# Each refresh is one PUT; four may fail before the lease ends.
REFRESH_S = 20.0
# A holder that was silent for this long is taken for dead.
LEASE_S = 90.0
# A holder that cannot refresh stops at this fraction of LEASE_S, before another may start.
GIVE_UP = 0.9
# A writer that waits looks at the lock this often; each look is one GET.
LOOK_S = 2.0
# At the end, a PUT in progress has this time; storage that is silent must not delay the end.
STOP_S = 5.0
# Not SIGINT, which a job in the background may ignore, and not SIGTERM, which Ray handles.
INTERRUPT = signal.SIGUSR1
# Attempts to write the lock; each failed one means that another writer was quicker.
ACQUIRE_ATTEMPTS = 4
# The form of an ETag, but that of no lock.
WRONG_ETAG = '"' + "0" * 32 + '"'


@contextlib.contextmanager
def held(uri: str, *, report: Reporter = silent) -> Iterator[None]:
    """Hold the lock during the block.

    Waits for a holder on another machine until it has refreshed the lock or is taken for dead.
    Raises ResumeError if another writer is alive, or if the lock is lost during the block.
    """
    lease = _Lease(uri, report=report)
    lease.acquire()
    try:
        try:
            yield
        finally:
            lease.stop()
    except KeyboardInterrupt:
        # The lease itself has caused this interrupt.
        if lease.lost:
            raise ResumeError(lease.lost, uri) from None
        raise
    finally:
        lease.release()
    if lease.lost:
        raise ResumeError(lease.lost, uri)


def knows_conditions(uri: str) -> bool:
    """Take and release a lock at this URI; return whether the storage obeys conditional writes.

    Raises CctmnError if it cannot be written, read or deleted there.
    """
    lease = _Lease(uri, report=silent)
    lease.acquire()
    lease.stop()
    store.delete(uri)
    return lease.conditional


class _Lease:
    """The lock object as this process sees it."""

    def __init__(self, uri: str, *, report: Reporter) -> None:
        # The text of the ResumeError, once the lock is lost.
        self.lost = ""
        self._uri, self._report = uri, report
        # Whether the server knows conditional writes; True until it shows otherwise.
        self.conditional = True
        self._etag = ""
        # Counted in the lock, so that no two of its versions have the same ETag.
        self._writes = 0
        self._stop = threading.Event()
        self._main = threading.current_thread() is threading.main_thread()
        self._previous_handler: Any = signal.SIG_DFL
        self._deadline: threading.Timer | None = None
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)
        self._holder = {
            "owner": secrets.token_hex(16),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "born": _process_start_ticks(os.getpid()),
            "submission": _submission(),
            "started": _now(),
        }

    def acquire(self) -> None:
        """Become the holder. Raises ResumeError, which names the holder that is alive."""
        began = time.monotonic()
        refused = ""
        # 1. Write the lock, unless a living holder has one.
        for _ in range(ACQUIRE_ATTEMPTS):
            current = store.read_version(self._uri)
            if current is not None and self._is_own(current):
                # The write was done, and its answer was lost.
                self._etag = current.etag
                break
            if current is not None and not _is_dead(current):
                current = self._wait_for(current)
            # Nobody has replaced it, and still it could not be replaced on that condition.
            if current is not None and current.etag == refused:
                self._use_unconditional_writes()
            refused = current.etag if current is not None else ""
            began = time.monotonic()
            if (etag := self._write(current)) is not None:
                self._etag = etag
                break
        else:
            raise ResumeError("other jobs are starting here too; use another OUT", self._uri)
        # 2. Find out whether the server obeys conditions.
        self._probe_conditions()
        # 3. Keep the lock.
        if self._main:
            self._previous_handler = signal.signal(INTERRUPT, _interrupt)
        self._start_deadline(began)
        self._thread.start()

    def stop(self) -> None:
        """End the refreshing; after this, the lease interrupts nothing."""
        self._stop.set()
        if self._deadline is not None:
            self._deadline.cancel()
        self._thread.join(STOP_S)
        if self._main:
            signal.signal(INTERRUPT, self._previous_handler)

    def release(self) -> None:
        """Delete the lock if this process still holds it; if that fails, its lease will end."""
        if self.lost:
            return
        with contextlib.suppress(CctmnError):
            current = store.read_version(self._uri)
            if current is not None and self._is_own(current):
                store.delete(self._uri)

    def _wait_for(self, holder: Version) -> Version | None:
        """Wait until the holder is taken for dead or is gone; return the lock that it leaves.

        Raises ResumeError if it is alive: it runs on this machine, or its lock has changed.
        """
        if _is_local(holder):
            raise ResumeError(_refusal(holder), self._uri)
        age_s = max(0.0, holder.age_s)
        self._report(
            f"{_name(holder)} holds the lock and was last seen {age_s:.0f} s ago; waiting at most "
            f"{max(1, round(LEASE_S - age_s))} s for a sign that it is alive",
            names=self._uri,
        )
        # Where the storage sends no date, the age depends on two clocks; this does not.
        end = time.monotonic() + LEASE_S
        current: Version | None = holder
        while current is not None and not _is_dead(current) and time.monotonic() < end:
            time.sleep(LOOK_S)
            current = store.read_version(self._uri)
            if current is not None and current.etag != holder.etag:
                raise ResumeError(_refusal(current), self._uri)
        return current

    def _is_own(self, current: Version) -> bool:
        return _holder(current).get("owner") == self._holder["owner"]

    def _probe_conditions(self) -> None:
        """Use unconditional writes if the server does not obey conditions in both directions.

        Raises ResumeError if another writer has replaced the lock meanwhile.
        """
        # 1. Two writes that must be refused: where there is no lock, and over another version.
        for over in (None, Version(b"", WRONG_ETAG, 0.0)):
            if self.conditional and (etag := self._write(over)) is not None:
                self._etag = etag
                self._use_unconditional_writes()
        # 2. One that must be done: over the version that is there.
        if not self.conditional:
            return
        if (etag := self._write(Version(b"", self._etag, 0.0))) is not None:
            self._etag = etag
            return
        current = store.read_version(self._uri)
        if current is None or not self._is_own(current):
            raise ResumeError("other jobs are starting here too; use another OUT", self._uri)
        self._adopt(current)

    def _adopt(self, current: Version) -> None:
        """Go on from the own lock as it is, after a conditional write was refused.

        Its ETag shows whether the write was done and its answer was lost. If it was not, the
        server refuses a condition that holds.
        """
        if current.etag == self._etag:
            self._use_unconditional_writes()
        self._etag = current.etag

    def _write(self, over: Version | None) -> str | None:
        """Replace this version of the lock, or create it. Returns the ETag, None if it changed."""
        self._writes += 1
        body = json.dumps(self._holder | {"refreshed": _now(), "writes": self._writes}).encode()
        try:
            if self.conditional and over is None:
                return store.put_if_absent(self._uri, body)
            if self.conditional and over is not None:
                return store.put_if_match(self._uri, body, etag=over.etag)
        except NotImplementedError:
            self._use_unconditional_writes()
        store.put(self._uri, body)
        current = store.read_version(self._uri)
        return current.etag if current is not None and self._is_own(current) else None

    def _use_unconditional_writes(self) -> None:
        if not self.conditional:
            return
        self.conditional = False
        self._report(
            "this storage does not know conditional writes, so two jobs that start at the same "
            "moment are not kept apart; start only one",
            names=self._uri,
        )

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_S):
            began = time.monotonic()
            # If storage fails for a moment, the deadline stays where it was.
            with contextlib.suppress(CctmnError):
                if not self._refresh_once():
                    return
                self._start_deadline(began)

    def _refresh_once(self) -> bool:
        """Refresh the lock. Returns False if it is lost, or was not written."""
        if self.conditional:
            etag = self._write(Version(b"", self._etag, 0.0))
            if etag is not None:
                self._etag = etag
                return True
        current = store.read_version(self._uri)
        if current is None or not self._is_own(current):
            self._mark_lost(
                "was deleted" if current is None else f"is now held by {_name(current)}"
            )
            return False
        if self.conditional:
            self._adopt(current)
        return self.conditional or self._write(current) is not None

    def _start_deadline(self, began: float) -> None:
        """Give the lock up unless it is refreshed again; it was last refreshed at `began`."""
        if self._deadline is not None:
            self._deadline.cancel()
        left = max(0.0, GIVE_UP * LEASE_S - (time.monotonic() - began))
        self._deadline = threading.Timer(left, self._mark_lost, ["could not be refreshed in time"])
        self._deadline.daemon = True
        if not self._stop.is_set():
            self._deadline.start()

    def _mark_lost(self, why: str) -> None:
        if self._stop.is_set() or self.lost:
            return
        self.lost = (
            f"the lock of this job {why}, so the job has stopped; "
            "check that no other job writes here and run the same command again to resume"
        )
        # Outside the main thread the error is raised when the block ends.
        if not self._main:
            return
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)


def _interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt: the code in the block already handles Ctrl-C."""
    raise KeyboardInterrupt


def _holder(current: Version) -> dict[str, Any]:
    """Return the fields that the holder has written into its lock."""
    try:
        holder = json.loads(current.data)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(current: Version) -> str:
    """Return the holder of a lock in words."""
    holder = _holder(current)
    process = f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
    if submission := holder.get("submission"):
        return f"job {submission} ({process})"
    return process


def _refusal(current: Version) -> str:
    return (
        f"{_name(current)} is writing here (last seen {current.age_s:.0f} s ago); "
        "wait for it or use another OUT"
    )


def _is_dead(current: Version) -> bool:
    """Return whether the holder was silent for too long, or has died on this machine."""
    if current.age_s > LEASE_S:
        return True
    holder = _holder(current)
    return _is_local(current) and (
        _process_start_ticks(int(holder.get("pid", 0))) != holder.get("born")
    )


def _is_local(current: Version) -> bool:
    """Return whether this process can see that of the holder."""
    machine = _holder(current).get("machine")
    return bool(machine) and machine == _machine()


def _machine() -> str:
    """Return an id that two processes share if they see each other's process ids.

    It consists of the boot and of the name space of process ids; "" where /proc does not exist.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start_ticks(pid: int) -> str:
    """Return when the process started, in ticks since boot; "" if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _submission() -> str:
    """Return the id of this job in Ray's Jobs API, "" if it was not submitted there."""
    with contextlib.suppress(ValueError, AttributeError):
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    return ""


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
