"""Shared parts of the tests: the material beside the checkout, a real S3 server, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
REPO = Path(__file__).resolve().parents[1]

# Before anything imports Ray: no token in HOME, no usage statistics, no waiting for a dashboard.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["CCTMN_LOG"] = "text"  # as on a terminal, but in the tests of the log itself
os.environ["OMP_NUM_THREADS"] = "1"  # two busy threads on a shared core are slower than one


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material; not there on a user's machine."""
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


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application = DomainDispatcherApplication(create_backend_app)
    seen = S3Server("")

    def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
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
    }
    yield seen
    server.shutdown()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del os.environ[name]


@pytest.fixture(scope="session")
def cctmn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a person does."""

    def run(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cctmn.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)

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
