"""A process that decodes, and may die: a damaged file costs its own slice and nothing else.

Codecs are C code. A file can crash one, send it into an endless loop, or make it ask for all of the
memory. The parent hands each object to a child process with limits. A child that dies or hangs is
replaced, and the slice that it was at becomes `decoder_died`.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Final

from cctmn.contract import InputContract
from cctmn.model.memory import keep_freed_memory
from cctmn.score.error_row import Row, error_row

TIMEOUT_S: Final = 60.0  # for opening an object, and for each frame
MEMORY_BYTES: Final = 1 << 30  # besides three times the object
PIPE_BYTES: Final = 1 << 20  # a slice of 512 x 512 has 512 KiB; Linux allows 1 MiB to anybody
KEPT_BYTES: Final = 64 << 20  # of freed memory; a slice of 512 x 512 needs some 10 MiB
_ATTEMPTS: Final = 2  # a machine that is short of memory kills innocent processes too
_LENGTH: Final = struct.Struct("<Q")
_SET_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


class _Died(Exception):  # noqa: N818  (an event, not an error of ours)
    """The child has ended, or did not answer in time."""


class Decoder:
    """A child process that decodes one object after another."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def rows(
        self, group: list[Row], data: bytes, *, contract: InputContract, key: bytes
    ) -> list[Row]:
        """Return the prepared row of each frame of an object, in order."""
        rows: list[Row] = []
        failures = 0
        while len(rows) < len(group):
            rest = group[len(rows) :]
            opened = False
            before = len(rows)
            try:
                for row in self._replies(rest, data, contract, key):
                    if row is None:
                        opened = True
                    else:
                        rows.append(row)
            except _Died:
                failures = failures + 1 if len(rows) == before else 1
                if failures < _ATTEMPTS:
                    continue
                lost = group[len(rows) : len(rows) + 1] if opened else group[len(rows) :]
                rows += [error_row(row, "decoder_died") for row in lost]
                failures = 0
        return rows

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _replies(
        self, group: list[Row], data: bytes, contract: InputContract, key: bytes
    ) -> Iterator[Row | None]:
        """Yield what the child sends: None once it has opened the object, then the rows."""
        if self._child is None:
            self._child = _start()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, (group, len(data), contract, key))
            child.stdin.write(data)  # apart, for pickle would copy it
            child.stdin.flush()
            for _ in range(1 + len(group)):
                yield _receive(child.stdout, deadline=time.monotonic() + TIMEOUT_S)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            raise _Died from None


@functools.cache
def of_this_process() -> Decoder:
    """Return the decoder of this process; it ends with the process."""
    keep_freed_memory(KEPT_BYTES)
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def _start() -> subprocess.Popen[bytes]:
    environment = os.environ | {
        # A worker of Ray finds the package in places that its environment does not name.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "cctmn.score.decoder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries write header values there
        env=environment,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    _widen(child.stdin, child.stdout)
    return child


def _send(file: IO[bytes], value: Any) -> None:
    message = pickle.dumps(value, protocol=5)
    file.write(_LENGTH.pack(len(message)))
    file.write(message)
    file.flush()


def _receive(file: IO[bytes], *, deadline: float) -> Any:
    (length,) = _LENGTH.unpack(_read(file, _LENGTH.size, deadline=deadline))
    if length > MEMORY_BYTES:  # no row is that large: something else was written
        raise EOFError
    return pickle.loads(_read(file, length, deadline=deadline))  # noqa: S301 - our own child


def _read(file: IO[bytes], size: int, *, deadline: float) -> bytearray:
    """Read so many bytes. Raises EOFError if they do not come in time."""
    buffer = bytearray(size)
    missing = memoryview(buffer)
    poll = select.poll()
    poll.register(file, select.POLLIN)
    while missing:
        ready = poll.poll(max(0.0, 1e3 * (deadline - time.monotonic())))
        count = os.readv(file.fileno(), [missing]) if ready else 0
        if not count:
            raise EOFError
        missing = missing[count:]
    return buffer


def _widen(*files: IO[bytes]) -> None:
    """Let pipes hold a slice, so that a slice costs one change of process and not eight."""
    with suppress(ImportError, AttributeError, OSError):  # Linux alone has this, up to a limit
        import fcntl

        for file in files:
            fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _limit_memory(data: bytes) -> None:
    """Let this process have so much memory for an object; what it asks for beyond is refused."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limits
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES + 3 * len(data), hard))


def _serve() -> None:
    """Be the child: decode what comes in until the parent is gone."""
    # Only here: the parent decodes nothing, and these imports take half a second.
    from cctmn.score.decode_rows import decode_rows

    if sys.platform == "linux":  # also in an endless loop, when the end of stdin is not seen
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    keep_freed_memory(KEPT_BYTES)
    incoming = sys.stdin.buffer
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the replies
    while head := incoming.read(_LENGTH.size):
        message = incoming.read(_LENGTH.unpack(head)[0])
        group, size, contract, key = pickle.loads(message)  # noqa: S301 - from our own parent
        data = incoming.read(size)
        _limit_memory(data)
        for row in decode_rows(group, data, contract=contract, key=key):
            _send(outgoing, row)


if __name__ == "__main__":
    _serve()
