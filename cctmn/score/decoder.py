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
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class _Request:
    """An object to decode, and its frames that are wanted."""

    group: list[Row]
    data: bytes
    contract: InputContract
    key: bytes


class Decoder:
    """A child process that decodes one object after another."""

    def __init__(self) -> None:
        self._child: _Child | None = None

    def decode(
        self, objects: Iterable[tuple[list[Row], bytes]], *, contract: InputContract, key: bytes
    ) -> Iterator[list[Row]]:
        """Yield for each object the prepared rows of its frames, in order.

        The child gets the next object while it decodes one, so that it need not wait for it.
        """
        sent: deque[_Request] = deque()
        try:
            for group, data in objects:
                sent.append(_Request(group, data, contract, key))
                self._send(sent[-1])
                if len(sent) > 1:
                    yield self._rows_of_first(sent)
            while sent:
                yield self._rows_of_first(sent)
        finally:
            if sent:  # its reply would be taken for that to the next request
                self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _send(self, request: _Request) -> None:
        if self._child is None:
            self._child = _Child()
        message = (request.group, len(request.data), request.contract, request.key)
        # The data goes apart, for pickle would copy it.
        self._child.send(*_framed(message), request.data)

    def _rows_of_first(self, sent: deque[_Request]) -> list[Row]:
        """Return the rows of the first request and take it out of those that were sent."""
        group = sent[0].group
        rows: list[Row] = []
        failures = 0
        while len(rows) < len(group):
            opened = False
            before = len(rows)
            try:
                for row in self._replies(1 + len(group) - before):
                    if row is None:
                        opened = True
                    else:
                        rows.append(row)
            except _Died:
                failures = failures + 1 if len(rows) == before else 1
                if failures == _ATTEMPTS:
                    lost = group[len(rows) : len(rows) + 1] if opened else group[len(rows) :]
                    rows += [error_row(row, "decoder_died") for row in lost]
                    failures = 0
                self._send_again(sent, group[len(rows) :])
        sent.popleft()
        return rows

    def _send_again(self, sent: deque[_Request], rest: list[Row]) -> None:
        """Send a new child the frames that the first request lacks, and the later requests."""
        first, *later = sent
        if rest:
            self._send(replace(first, group=rest))
        for request in later:
            self._send(request)

    def _replies(self, count: int) -> Iterator[Row | None]:
        """Yield what the child replies: None once it has opened the object, then the rows."""
        assert self._child is not None
        try:
            for _ in range(count):
                yield self._child.receive(timeout_s=TIMEOUT_S)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            raise _Died from None


class _Child:
    """The process, and the bytes that it has not taken yet."""

    def __init__(self) -> None:
        self._process = _start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        # Both sides can have more to write than a pipe holds. Neither waits for the other then.
        os.set_blocking(self._in, False)
        self._unsent: deque[memoryview] = deque()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *parts: bytes) -> None:
        """Send bytes as far as the pipe takes them; `receive` sends the others."""
        self._unsent += map(memoryview, parts)
        with suppress(BrokenPipeError):  # it has died: `receive` will tell
            self._write()

    def receive(self, *, timeout_s: float) -> Any:
        """Return the next reply. Raises EOFError or OSError if none comes in time."""
        deadline = time.monotonic() + timeout_s
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline=deadline))
        if length > MEMORY_BYTES:  # no row is that large: something else was written
            raise EOFError
        return pickle.loads(self._read(length, deadline=deadline))  # noqa: S301 - our own child

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, size: int, *, deadline: float) -> bytearray:
        """Read so many bytes, and meanwhile send what waits to be sent."""
        buffer = bytearray(size)
        missing = memoryview(buffer)
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        while missing:
            if self._unsent:
                poll.register(self._in, select.POLLOUT)
            ready = {fd for fd, _ in poll.poll(max(0.0, 1e3 * (deadline - time.monotonic())))}
            if self._out in ready or not ready:  # first, for a child that has died may have replied
                count = os.readv(self._out, [missing]) if ready else 0
                if not count:
                    raise EOFError
                missing = missing[count:]
            elif self._write():
                poll.unregister(self._in)
        return buffer

    def _write(self) -> bool:
        """Write until the pipe is full. Returns whether everything is written."""
        while self._unsent:
            try:
                count = os.write(self._in, self._unsent[0])
            except BlockingIOError:
                return False
            if count < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][count:]
            else:
                self._unsent.popleft()
        return True


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


def _framed(value: Any) -> tuple[bytes, bytes]:
    """Return a message and, to be sent before it, its length."""
    message = pickle.dumps(value, protocol=5)
    return _LENGTH.pack(len(message)), message


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
            outgoing.writelines(_framed(row))
            outgoing.flush()


if __name__ == "__main__":
    _serve()
