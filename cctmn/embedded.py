"""What keeps a Ray that is started here private: its folder, its token, its addresses, its words.

Ray writes the arguments of its workers into its session folder, and reports them on stdout when
memory is short. They hold paths, which may name a patient. A process that can reach Ray's ports,
or read its token, can run code as this user.
"""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from cctmn.errors import PreflightError

# Each server of Ray opens some 60 files, and the raylet 5 more per worker; Ray names 4096 as safe.
OPEN_FILES: Final = 1024
PREFIX: Final = "cctmn-"
_LOCK: Final = "lock"
_RAY: Final = "r"  # Ray opens its own folder to everybody, so it lies in one that is closed
# The path of a unix socket has at most 107 bytes. Below its folder Ray takes
# /session_<time>_<pid>/sockets/plasma_store of it.
_LONGEST_FOLDER: Final = 107 - len(
    "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)
_LONGEST_BASE: Final = _LONGEST_FOLDER - len(f"/{PREFIX}12345678/{_RAY}")
# Waits for the end of its parent; after a word from it there is nothing to do.
_AFTER_A_KILL: Final = 'folder=$1; shift; read -r word || { kill -9 "$@"; rm -rf "$folder"; }'
# Methods of Ray's node that start a server which a Ray on one machine does not need.
NEEDLESS: Final = ("start_monitor", "start_log_monitor", "start_api_server")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that only this user can enter, for Ray's session; it is removed afterwards.

    Folders of drivers that were killed are removed too. Raises PreflightError if no folder for
    temporary files is short enough and writable.
    """
    base = _base()
    _remove_left_over(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    # The lock is taken before it gets its name, so nobody sees one that seems to be free.
    with (folder / "new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / _LOCK)
        try:
            (folder / _RAY).mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def ray_folder(folder: Path) -> str:
    """Return the part of a private folder that is Ray's."""
    return str(folder / _RAY)


def check_open_files() -> None:
    """Raise PreflightError if this process may open too few files; Ray raises a soft limit."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        raise PreflightError(
            f"the limit of open files is {limit} here, and Ray needs {OPEN_FILES}; allow more with "
            "`ulimit -n 4096`, or ask the administrator of this machine"
        )


def check_disk(folder: Path, needed: int) -> None:
    """Raise PreflightError if the disk of a private folder has fewer free bytes than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PreflightError(
            f"the disk for temporary files has {free >> 20:,} MiB free, and Ray needs "
            f"{needed >> 20:,}; free some, or set RAY_TMPDIR to a folder on another disk",
            folder.parent,
        )


def _base() -> Path:
    """Return the folder for temporary files: RAY_TMPDIR, TMPDIR, or /tmp if they are too long."""
    given = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]  # noqa: S108
    for name in given:
        if name and len(os.fsencode(name)) <= _LONGEST_BASE and os.access(name, os.W_OK | os.X_OK):
            return Path(name).absolute()
    raise PreflightError(
        f"no folder for Ray's sockets: TMPDIR is longer than {_LONGEST_BASE} bytes and /tmp is not "
        "writable; set RAY_TMPDIR to a writable folder with a short path",
        tempfile.gettempdir(),
    )


def _remove_left_over(base: Path) -> None:
    for lock in base.glob(f"{PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open() as held:
            if os.fstat(held.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def token_and_loopback(folder: Path) -> Iterator[None]:
    """Make Ray listen on loopback only and ask for a token that nobody else can read.

    A RAY_AUTH_MODE or RAY_AUTH_TOKEN that the user has set stays in force.
    """
    values = {
        # Ray's name for "this machine only"; despite the name it works on Linux.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if "RAY_AUTH_MODE" not in os.environ:
        values["RAY_AUTH_MODE"] = "token"
        if "RAY_AUTH_TOKEN" not in os.environ:
            path = folder / "token"
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
            values["RAY_AUTH_TOKEN_PATH"] = str(path)
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    import ray._private.ray_constants as constants

    clusters = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    read_environment_again()
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        read_environment_again()


@contextmanager
def fewest_servers() -> Iterator[None]:
    """Let ray.init start no autoscaler, no reader of its workers' logs and no dashboard's server.

    Nothing asks them here, and each takes a second of a core while the scorers load their model.
    ray.init has no option against them, so the functions that start them are replaced meanwhile;
    tests/test_embedded.py fails when Ray changes them.
    """
    from ray._private.node import Node

    before = {name: vars(Node)[name] for name in NEEDLESS}
    for name in NEEDLESS:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def read_environment_again() -> None:
    """Forget the mode and token that Ray's core has read before."""
    import ray._raylet as core

    # Ray's stubs know neither name.
    vars(core)["Config"].initialize("")
    vars(core)["AuthenticationTokenLoader"].instance().reset_cache()


@contextmanager
def ended_with_driver(folder: Path) -> Iterator[None]:
    """End Ray's processes, and remove its folder, when this process is killed.

    Ray's agents would go on for a minute, looking for its servers.
    """
    started = [str(process.pid) for process in psutil.Process().children(recursive=True)]
    # A session of its own, so that a signal to the group of this process leaves it alone.
    waiting = subprocess.Popen(  # noqa: S603  (ids of processes and a folder of ours)
        ["/bin/sh", "-c", _AFTER_A_KILL, "sh", str(folder), *started],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            waiting.communicate(b"done\n")


class MemoryKills:
    """Counts the workers that Ray has ended for lack of memory since anything was finished."""

    def __init__(self) -> None:
        self._at: list[float] = []

    def heard(self, message: str) -> None:
        """Take a message of Ray to its driver."""
        if "due to oom" in message:
            self._at.append(time.monotonic())

    def finished_something(self) -> None:
        """Begin to count again."""
        self._at.clear()

    def count(self, *, within_s: float) -> int:
        """Return how many there were in the last seconds."""
        begin = time.monotonic() - within_s
        return sum(at >= begin for at in self._at)


# Of the one Ray that this process is connected to.
memory_kills: Final = MemoryKills()


def silence_ray() -> None:
    """Keep Ray's messages to its driver off stdout, and count those on memory.

    They name the command lines of processes, and stdout is data. Ray prints them even with
    log_to_driver=False and has no option against it, so its function is replaced;
    tests/test_embedded.py fails when Ray changes it.
    """
    import ray._private.worker as driver

    def hold(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            memory_kills.heard(str(line))

    driver.print_to_stdstream = hold
