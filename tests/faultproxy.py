"""A proxy in front of an S3 server that fails the requests it is told to fail; loopback only.

moto never fails. Real storage does: it refuses valid keys for a moment, is too busy, and its
connections break, before a request was done or after. A test says in rules which request fails
and how, and finds in `requests` all that were asked for. The Host header, which is signed, and
all other headers are passed on as they are.
"""

from __future__ import annotations

import http.client
import random
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET
from typing import IO, Final

# Longer than any answer of the server takes.
UPSTREAM_S = 60.0
# Set anew for each connection, or by http.client.
OF_ONE_CONNECTION: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
)


@dataclass(frozen=True)
class Fault:
    """How a request fails.

    It gets an answer with `status` and the S3 code `code` in its body. Or its connection is
    `reset` before it reaches the server, or after the server has done it, so that the answer is
    `lost`. Or the body is `cut` after half of its Content-Length, or the second half of the body
    comes `delay_s` later.
    """

    name: str
    status: int = 0
    code: str = ""
    reset: bool = False
    lost: bool = False
    cut: bool = False
    delay_s: float = 0.0


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("denied", status=403, code="AccessDenied"),
        Fault("expired", status=400, code="ExpiredToken"),
        Fault("busy", status=503, code="SlowDown"),
        Fault("reset", reset=True),
        Fault("lost", lost=True),
        Fault("cut", cut=True),
        Fault("slow", delay_s=0.2),
    )
}


@dataclass(frozen=True)
class Request:
    """One request: `path` is raw and has its query, `fault` is the name of what was done to it."""

    method: str
    path: str
    range: str = ""
    fault: str = ""


@dataclass
class Rule:
    """Fails the requests for which `when` is true, but for the first `skip`; at most `times`.

    With a probability below 1 only a part of them fails. Which part depends on the seed of the
    proxy, the request, and how often it was made, and not on the order of other requests.
    """

    fault: Fault
    when: Callable[[Request], bool] = lambda _: True
    skip: int = 0
    times: int | None = None
    probability: float = 1.0
    seen: int = 0
    fired: int = 0

    def fires(self, request: Request, draw: float) -> bool:
        """Return whether this request fails; `draw` is uniform in [0, 1)."""
        if not self.when(request):
            return False
        self.seen += 1
        spent = self.times is not None and self.fired >= self.times
        if self.seen <= self.skip or spent or draw >= self.probability:
            return False
        self.fired += 1
        return True


class FaultProxy:
    """The proxy, from `start` to `stop`, at one address; `use` changes what fails."""

    def __init__(self, upstream: str) -> None:
        """Prepare a proxy of the server at this endpoint, http://host:port."""
        host, _, port = upstream.removeprefix("http://").partition(":")
        self.upstream = host, int(port)
        # What went wrong in the proxy itself; a test can trust its results if this is empty.
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self.use()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def use(self, *rules: Rule, seed: int = 0) -> None:
        """Forget the requests until now, and fail the next ones; the first rule that fires wins."""
        with self._lock:
            self._rules, self._seed = rules, seed
            self._made: Counter[Request] = Counter()
            self.requests: list[Request] = []

    def record(self, request: Request) -> Fault | None:
        """Note a request; return how it fails."""
        with self._lock:
            self._made[request] += 1
            made = self._made[request]
            fault = None
            for number, rule in enumerate(self._rules):
                draw = random.Random(f"{self._seed} {number} {request} {made}").random()
                if rule.fires(request, draw):
                    fault = rule.fault
                    break
            name = fault.name if fault else ""
            self.requests.append(Request(request.method, request.path, request.range, name))
        return fault


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    # Many workers connect at the same moment.
    request_queue_size = 256
    proxy: FaultProxy

    def shutdown_request(self, request: object) -> None:
        """Only close: to shut the connection down first would end it in order, not reset it."""
        self.close_request(request)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        # A client may go at any time.
        if error is not None and not isinstance(error, ConnectionError):
            self.proxy.failures.append(error)


class _Connection(socketserver.StreamRequestHandler):
    """One kept connection of a client, with one of its own to the server."""

    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=UPSTREAM_S)
        try:
            while self._one(upstream):
                pass
        finally:
            upstream.close()

    def _one(self, upstream: http.client.HTTPConnection) -> bool:
        """Serve one request; return whether the connection is kept."""
        # 1. Read the request.
        words = self.rfile.readline().split()
        if not words:
            return False
        method, path = words[0].decode(), words[1].decode()
        headers = _headers(self.rfile)
        named = {name.lower(): value for name, value in headers}
        if named.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _body(self.rfile, named)
        fault = self.server.proxy.record(Request(method, path, named.get("range", "")))
        # 2. Fail it before it reaches the server.
        if fault is not None and fault.reset:
            return self._reset()
        if fault is not None and fault.status:
            self._send(method, *_refusal(fault))
            return True
        # 3. Pass it on.
        upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            if name.lower() not in OF_ONE_CONNECTION:
                upstream.putheader(name, value)
        if body or method in ("PUT", "POST"):
            upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body or None)
        answer = upstream.getresponse()
        data = answer.read()
        # 4. Fail its answer, or hand it back.
        if fault is not None and fault.lost:
            return self._reset()
        given = [(n, v) for n, v in answer.getheaders() if n.lower() not in OF_ONE_CONNECTION]
        length = answer.getheader("Content-Length") if method == "HEAD" else None
        if answer.status not in (204, 304):
            given.append(("Content-Length", length or str(len(data))))
        # Where the server ends its connection, http.client opens another for the next request.
        return self._send(method, f"{answer.status} {answer.reason}", given, data, fault)

    def _reset(self) -> bool:
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _send(
        self,
        method: str,
        line: str,
        headers: list[tuple[str, str]],
        data: bytes,
        fault: Fault | None = None,
    ) -> bool:
        """Send an answer; return whether it was sent to its end."""
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        first = f"HTTP/1.1 {line}\r\n{head}\r\n".encode("latin-1")
        data = b"" if method == "HEAD" else data
        half = len(data) if fault is None else len(data) // 2
        if fault is not None and fault.delay_s and not data:
            time.sleep(fault.delay_s)
        self.wfile.write(first + data[:half])
        if fault is not None and fault.cut and data:
            return False
        if fault is not None and data:
            time.sleep(fault.delay_s)
            self.wfile.write(data[half:])
        return True


def _headers(file: IO[bytes]) -> list[tuple[str, str]]:
    headers = []
    while (line := file.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    return headers


def _body(file: IO[bytes], headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return file.read(int(headers.get("content-length", "0")))
    parts = []
    while size := int(file.readline().split(b";")[0], 16):
        parts.append(file.read(size))
        file.readline()
    while file.readline().strip():
        pass
    return b"".join(parts)


def _refusal(fault: Fault) -> tuple[str, list[tuple[str, str]], bytes]:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>injected</Message>"
        "<RequestId>0</RequestId></Error>"
    ).encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
    return f"{fault.status} {http.client.responses[fault.status]}", headers, text
