"""S3 servers that other people run: OpenStack Swift with its S3 API, and the Ceph RADOS Gateway.

moto imitates AWS. These two are real, and differ from AWS in conditional writes, checksums and
bodies of unknown length. They come from Debian packages; all they write lies below a temporary
folder, their ports are free ones of loopback, and they end with the test run.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cctmn.store import s3 as s3_module
from cctmn.store import s3_client
from tests.processes import end_with_the_test_run

# Debian's interpreter: Swift is a package of it, and not one of the virtual environment.
PYTHON = "/usr/bin/python3"
SWIFT_PARTS = ("account", "container", "object", "proxy")
SWIFT_CONF = Path("/etc/swift/swift.conf")
# Both start within 15 s on an idle machine with two cores.
START_S = 90.0
RINGS = """
import sys
from swift.common.ring import RingBuilder
for part, port in zip(("account", "container", "object"), sys.argv[1:]):
    ring = RingBuilder(6, 1, 1)
    ring.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port),
                  "device": "disk", "weight": 1.0})
    ring.rebalance()
    ring.get_ring().save(part + ".ring.gz")
"""
FILTERS = {
    "catch_errors": "catch_errors",
    "gatekeeper": "gatekeeper",
    "cache": "memcache",
    "healthcheck": "healthcheck",
    "listing_formats": "listing_formats",
    "s3api": "s3api\nlocation = us-east-1\ns3_acl = false",
    "tempauth": "tempauth\nuser_test_tester = testing .admin",
    "slo": "slo",
    "dlo": "dlo",
}


class MissingError(Exception):
    """The packages of a server are not installed, or it does not start here."""


@dataclass(frozen=True)
class Server:
    """An S3 server on loopback; `ca_bundle` is the certificate to trust over TLS."""

    name: str
    endpoint: str
    key: str
    secret: str
    ca_bundle: str = ""

    def environment(self) -> dict[str, str]:
        """The standard AWS variables that lead to the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        } | ({"AWS_CA_BUNDLE": self.ca_bundle} if self.ca_bundle else {})


def lead_to(server: Server, patch: pytest.MonkeyPatch) -> None:
    """Lead the S3 client of this process, and those of its children, to a server."""
    for variable, value in server.environment().items():
        patch.setenv(variable, value)
    s3_client.clear()
    s3_module._check_bucket.cache_clear()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _needs(packages: str, programs: tuple[str, ...]) -> None:
    if missing := [name for name in programs if shutil.which(name) is None]:
        raise MissingError(f"{', '.join(missing)} not found; install {packages}")


def _run(folder: Path, *command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=START_S, check=False
    )
    if done.returncode:
        raise MissingError(f"{words[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[Callable[..., None]]:
    """Yield a function that starts a program; all of them end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: object) -> None:
        words = [str(word) for word in command]
        with (folder / f"{len(started)}.out").open("wb") as output:
            started.append(
                subprocess.Popen(
                    words,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=end_with_the_test_run,
                )
            )

    try:
        yield start
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def _wait_for(what: str, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > end:
            raise MissingError(f"{what} did not start within {START_S:.0f} s")
        time.sleep(0.1)


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Server]:
    """Run OpenStack Swift with its S3 interface; raises MissingError."""
    _needs(
        "swift-proxy swift-account swift-container swift-object",
        tuple(f"swift-{part}-server" for part in SWIFT_PARTS),
    )
    if not os.access(SWIFT_CONF, os.R_OK):
        raise MissingError(f"{SWIFT_CONF} cannot be read; Swift reads it and no other")
    ports = free_ports(len(SWIFT_PARTS))
    (folder / "node" / "disk").mkdir(parents=True)
    _run(folder, PYTHON, "-c", RINGS, *ports[:-1])
    for part, port in zip(SWIFT_PARTS, ports, strict=True):
        (folder / f"{part}.conf").write_text(_swift_settings(part, port, folder))
    with _running(folder) as start:
        for part in SWIFT_PARTS:
            start(PYTHON, shutil.which(f"swift-{part}-server"), f"{part}.conf")
        endpoint = f"http://127.0.0.1:{ports[-1]}"
        _wait_for("Swift", lambda: _answers(f"{endpoint}/healthcheck"))
        for port in ports[:-1]:
            _wait_for("Swift", lambda at=port: _answers(f"http://127.0.0.1:{at}/"))
        yield Server("swift", endpoint, "test:tester", "testing")


def _swift_settings(part: str, port: int, folder: Path) -> str:
    """Return the settings of one server; with 0 workers it is one process, without children."""
    name = f"{part}-server"
    common = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\n"
        f"user = {pwd.getpwuid(os.getuid()).pw_name}\nswift_dir = {folder}\n"
        f"log_address = {folder}/no-log\nrecon_cache_path = {folder}\n"
        f"devices = {folder}/node\nmount_check = false\ndisable_fallocate = true\n"
    )
    if part != "proxy":
        return f"{common}[pipeline:main]\npipeline = {name}\n[app:{name}]\nuse = egg:swift#{part}\n"
    return (
        f"{common}[pipeline:main]\npipeline = {' '.join(FILTERS)} {name}\n"
        f"[app:{name}]\nuse = egg:swift#proxy\n"
        "allow_account_management = true\naccount_autocreate = true\n"
    ) + "".join(f"[filter:{name}]\nuse = egg:swift#{text}\n" for name, text in FILTERS.items())


@contextlib.contextmanager
def rgw(folder: Path) -> Iterator[Server]:
    """Run a Ceph of one node, in memory, with a RADOS Gateway; raises MissingError.

    Its user `limited` has no rights but those that a bucket's policy gives.
    """
    _needs(
        "radosgw ceph-mon ceph-osd",
        ("ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin"),
    )
    v2, v1, http = free_ports(3)
    fsid, osd = uuid.uuid4(), uuid.uuid4()
    monitor = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
    for name in ("run", "osd", "gateway"):
        (folder / name).mkdir()
    settings = {
        "global": {
            "fsid": fsid,
            "mon host": monitor,
            "public network": "127.0.0.0/8",
            "keyring": folder / "admin.keyring",
            "run dir": folder / "run",
            # A socket's path may have 107 bytes, which a temporary folder can exceed.
            "admin socket": '""',
            "log file": folder / "$name.log",
            "mon data": folder / "mon",
            "mon data avail crit": 1,
            "mon allow pool size one": "true",
            "mon max pg per osd": 1000,
            "osd data": folder / "osd",
            "osd objectstore": "memstore",
            "memstore device bytes": 1 << 30,
            "osd pool default size": 1,
            "osd pool default min size": 1,
            "osd pool default pg num": 1,
            "osd pool default pgp num": 1,
            "osd crush chooseleaf type": 0,
        },
        "osd.0": {"keyring": folder / "osd" / "keyring"},
        "client.gateway": {
            "keyring": folder / "gateway.keyring",
            "rgw data": folder / "gateway",
            "rgw frontends": f"beast endpoint=127.0.0.1:{http}",
        },
    }
    (folder / "ceph.conf").write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
            for section, values in settings.items()
        )
    )
    _keys(folder)
    _run(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, "monmap")
    of = ("-c", "ceph.conf")
    _run(
        folder,
        "ceph-mon",
        *of,
        "--mkfs",
        "-i",
        "a",
        "--monmap",
        "monmap",
        "--keyring",
        "mon.keyring",
    )
    with _running(folder) as start:
        start("ceph-mon", *of, "-f", "-i", "a")
        _run(folder, "ceph", *of, "osd", "new", osd)
        _run(folder, "ceph-osd", *of, "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        rights = ("mon", "allow profile osd", "osd", "allow *")
        _run(folder, "ceph", *of, "auth", "get-or-create", "osd.0", *rights, "-o", "osd/keyring")
        start("ceph-osd", *of, "-f", "-i", "0")
        rights = ("mon", "allow rwx", "osd", "allow rwx")
        who = "client.gateway"
        _run(folder, "ceph", *of, "auth", "get-or-create", who, *rights, "-o", "gateway.keyring")
        user = ("--uid", "test", "--display-name", "test", "--access-key", "test")
        _run(folder, "radosgw-admin", *of, "user", "create", *user, "--secret", "test")
        user = ("--uid", "limited", "--display-name", "limited", "--access-key", "limited")
        _run(folder, "radosgw-admin", *of, "user", "create", *user, "--secret", "limited")
        start("radosgw", *of, "-f", "-n", who)
        endpoint = f"http://127.0.0.1:{http}"
        _wait_for("the RADOS Gateway", lambda: _answers(endpoint))
        yield Server("rgw", endpoint, "test", "test")


def _keys(folder: Path) -> None:
    """Make the keys of the monitor and of the administrator."""
    every = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    make = ("ceph-authtool", "--create-keyring")
    _run(folder, *make, "mon.keyring", "--gen-key", "-n", "mon.", *every[:3])
    _run(folder, *make, "admin.keyring", "--gen-key", "-n", "client.admin", *every)
    _run(folder, "ceph-authtool", "mon.keyring", "--import-keyring", "admin.keyring")


@contextlib.contextmanager
def over_tls(server: Server, folder: Path) -> Iterator[Server]:
    """Put TLS in front of a server, with a certificate that only `ca_bundle` makes known."""
    _needs("openssl", ("openssl",))
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    _run(folder, *request, *names, "-keyout", "tls.key", "-out", "tls.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    target = int(server.endpoint.rpartition(":")[2])
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listening, context, target), daemon=True).start()
    endpoint = f"https://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield Server(server.name, endpoint, server.key, server.secret, str(folder / "tls.pem"))
    finally:
        listening.close()


def _accept(listening: socket.socket, context: ssl.SSLContext, target: int) -> None:
    with contextlib.suppress(OSError):  # the socket is closed at the end
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_join, args=(client, context, target), daemon=True).start()


def _join(client: socket.socket, context: ssl.SSLContext, target: int) -> None:
    """Decrypt what a client sends to the server, and encrypt what it answers."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        plain = opened.enter_context(socket.create_connection(("127.0.0.1", target)))
        secret = opened.enter_context(context.wrap_socket(client, server_side=True))
        back = threading.Thread(target=_copy, args=(plain, secret), daemon=True)
        back.start()
        _copy(secret, plain)
        back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":  # for a person: a server until Ctrl-C
    with {"swift": swift, "rgw": rgw}[sys.argv[1]](Path(sys.argv[2]).resolve()) as running:
        print("\n".join(f"export {n}={v}" for n, v in running.environment().items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
