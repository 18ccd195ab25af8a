"""Shared parts of the tests: tiers, reference material, a real S3 server, one Ray, the command.

The markers `reference`, `ray`, `browser` and `cluster` are given here by fixture and folder; a test
module that starts Ray only in a subprocess names `ray` or `slow` itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import servers as real_servers
from tests.processes import die_with_parent, end_with_the_test_run

SHARED = Path(__file__).resolve().parents[2] / "shared"
REPO = Path(__file__).resolve().parents[1]

# Before anything imports Ray: no token in HOME, no usage statistics, no waiting for a dashboard.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # a run ends up to three checks later
os.environ["CCTMN_LOG"] = "text"  # as on a terminal, but in the tests of the log itself
os.environ["OMP_NUM_THREADS"] = "1"  # two busy threads on a shared core are slower than one

if "PYTEST_XDIST_WORKER" in os.environ:
    die_with_parent()

# marker -> the fixtures that give it to a test
MARKERS = {
    "reference": {"shared"},
    "ray": {"shared_ray", "nodes", "submit"},
    "browser": {"browser"},
    "servers": {"servers"},
}
# The files that wait longest are started first, so that no process is left alone with one at the
# end; all other files follow in the order of their names.
FIRST = (
    "tests/train/test_distributed.py",
    "tests/cluster_nodes/test_nodes.py",
    "tests/score/test_faults.py",
    "tests/score/test_kill.py",
    "tests/cluster_nodes/test_scaling.py",
    "tests/score/test_reference.py",
    "tests/train/test_loop.py",
    "tests/score/test_planted_name.py",
    "tests/score/test_scale.py",
    "tests/score/test_run.py",
    "tests/score/test_storage_failures.py",
    "tests/test_cli.py",
    "tests/data/test_round_trip_commands.py",
    "tests/test_previous_version.py",
    "tests/score/test_watch.py",
    "tests/test_demo_model.py",
    "tests/evaluate/test_scale.py",
    "tests/test_stopped.py",
    "tests/test_rerun.py",
    "tests/test_lease.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker, names in MARKERS.items():
            if fixtures & names:
                item.add_marker(marker)
        if "tests/cluster_nodes/" in item.path.as_posix():
            item.add_marker("cluster")
    order = {name: position for position, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(FIRST)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material, which only the authors' machines have."""
    if not SHARED.is_dir():
        pytest.skip("the reference material (a folder `shared` beside the checkout) is not here")
    return SHARED


@dataclass
class RecordingReporter:
    """A Reporter that keeps what it is given."""

    lines: list[str] = field(default_factory=list)
    transient: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __call__(self, text: str, *, transient: bool = False, names: str = "") -> None:
        self.lines.append(text)
        self.transient.append(transient)
        self.names.append(names)


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()


@dataclass
class S3Server:
    """A real S3 server on loopback, which remembers what it sent."""

    endpoint: str
    gets: list[tuple[str, int]] = field(default_factory=list)  # path, bytes of the body
    # returns the status and the code of a request that shall fail
    fault: Callable[[dict[str, Any]], tuple[str, str] | None] | None = None

    def bytes_sent(self, path: str) -> int:
        return sum(n for where, n in self.gets if where == path)

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")

    def bucket(self, name: str) -> Any:
        client = self.client()
        client.create_bucket(Bucket=name)
        return client

    def upload(self, bucket: str, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=data)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run moto in this process, and lead the standard AWS variables to it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application = DomainDispatcherApplication(create_backend_app)
    seen = S3Server("")

    def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        if seen.fault is not None and (refusal := seen.fault(environ)):
            status, code = refusal
            start_response(status, [("Content-Type", "application/xml")])
            yield f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            return
        total = 0
        for chunk in application(environ, start_response):
            total += len(chunk)
            yield chunk
        if environ["REQUEST_METHOD"] == "GET":
            seen.gets.append((environ["PATH_INFO"], total))

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any, **kwargs: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, counting, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.endpoint = f"http://127.0.0.1:{server.server_port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": seen.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",  # a request that fails always shall not take half a minute
    }
    yield seen
    server.shutdown()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del os.environ[name]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as seen:
        yield seen


class Servers:
    """Real S3 servers, each started when the first test asks for it, and moto."""

    def __init__(self, moto: S3Server, temporary: Callable[[str], Path]) -> None:
        self._temporary, self._running = temporary, ExitStack()
        self._started = {"moto": real_servers.Server("moto", moto.endpoint, "test", "test")}
        self._missing: dict[str, str] = {}

    def plain(self, name: str) -> real_servers.Server:
        start = {"swift": real_servers.swift, "rgw": real_servers.rgw}
        return self._once(name, lambda: start[name](self._temporary(name)))

    def over_tls(self, name: str) -> real_servers.Server:
        plain = self.plain(name)
        tls = f"{name} over TLS"
        return self._once(tls, lambda: real_servers.over_tls(plain, self._temporary("tls")))

    def _once(
        self, name: str, start: Callable[[], AbstractContextManager[real_servers.Server]]
    ) -> real_servers.Server:
        if name not in self._started and name not in self._missing:
            try:
                self._started[name] = self._running.enter_context(start())
            except real_servers.MissingError as error:
                self._missing[name] = str(error)
        if name in self._missing:
            pytest.skip(self._missing[name])
        return self._started[name]

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="session")
def servers(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    all_of_them = Servers(s3, tmp_path_factory.mktemp)
    yield all_of_them
    all_of_them.stop()


class SharedRay:
    """One Ray for all the test modules of a process: to start it takes longer than most tests."""

    def __init__(self) -> None:
        self._running = ExitStack()

    def address(self) -> str:
        import ray

        from cctmn import runtime

        if not ray.is_initialized():
            self._running.enter_context(runtime.session())
        return str(ray.get_runtime_context().gcs_address)

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="session")
def shared_ray(s3: S3Server) -> Iterator[SharedRay]:
    """It starts after the S3 server, whose address its workers find in the environment."""
    one = SharedRay()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def cluster(shared_ray: SharedRay) -> str:
    """Address of the shared Ray.

    The test process is connected to it, so that runs share worker processes.
    """
    return shared_ray.address()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> None:
    """Stop the shared Ray, for a test that starts one with other settings."""
    shared_ray.stop()


@pytest.fixture(scope="session")
def cctmn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a person does."""

    def run(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cctmn.cli", *map(str, args)]
        options |= {"capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(command, preexec_fn=end_with_the_test_run, **options)

    return run


@pytest.fixture(scope="session")
def fresh_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained classifier."""
    from cctmn.model import checkpoint
    from cctmn.model.card import Arch, Card

    arch = Arch(
        backbone="resnet18",
        truncation=2,
        lesion_classes=("lesion",),
        mask_head=False,
        image_classes=("control", "pneumonia", "covid"),
        ranked=32,
        hidden=16,
    )
    folder = tmp_path_factory.mktemp("model") / "fresh"
    card = Card(name="fresh", arch=arch, trained=False)
    checkpoint.save(checkpoint.fresh(arch, seed=1), folder, card=card)
    return folder
