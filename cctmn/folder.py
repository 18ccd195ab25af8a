"""Rules of every output folder: it has one writer at a time, and belongs to one job.

The lock disappears with its process. A job of another identity is refused, and the message names
the differences.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from cctmn import lease, store
from cctmn.errors import ConfigError, ResumeError, StoreError
from cctmn.identity import RunIdentity
from cctmn.reporter import Reporter, silent


@contextlib.contextmanager
def only_writer(out: str, *, report: Reporter = silent) -> Iterator[None]:
    """Hold the folder for this process during the block.

    A killed process leaves no lock: on disk the kernel releases it, elsewhere its lease ends.
    Raises ResumeError if another process writes there, StoreError if the folder cannot be written.
    """
    if not store.traits(out).file_locks:
        with lease.held(store.join(out, "private", "lock"), report=report):
            yield
        return
    private = store.to_path(out) / "private"
    try:
        private.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(private / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"cannot be written ({error.strerror}); check OUT", private) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode() or "unknown"
        os.close(handle)
        raise ResumeError(
            f"process {holder} is writing here; wait for it or use another OUT", private.parent
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    try:
        yield
    finally:
        os.close(handle)


def check_same(uri: str, *, identity: RunIdentity, name: str) -> None:
    """Raise ResumeError if the run.json at `uri` was written for a run of another identity."""
    run = store.read_optional(uri)
    if run is None:
        return
    if differences := identity.differences(RunIdentity.read(json.loads(run))):
        raise ResumeError(
            f"holds another job's results ({'; '.join(differences)}); use a new OUT", name
        )


def check_target(out: str, target: str, *, private: bool) -> None:
    """Raise ConfigError if a file that was asked for must not be written into this OUT.

    Beside the results it would be read as one of them. `private` says that it names or shows
    patients, so in OUT it may stand in private/ alone.
    """
    inside = store.to_uri(target).removeprefix(store.to_uri(out).rstrip("/") + "/")
    if inside == store.to_uri(target):
        return
    if inside.startswith(("predictions/", "studies/", "private/inventory/")):
        raise ConfigError("is for what `cctmn score` writes; write to another folder", target)
    if private and not inside.startswith("private/"):
        raise ConfigError(
            "would identify patients in a folder that may be handed on; "
            "write to OUT/private or outside OUT",
            target,
        )


def put_json(uri: str, value: dict[str, Any]) -> None:
    """Write a table as JSON; what lies below private/ is for its owner alone."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    store.put(uri, text.encode(), private="/private/" in uri)
