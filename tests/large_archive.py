"""Measure a run over a bucket with very many objects, on a server that answers after 20 ms.

    python -m tests.large_archive --objects 200000

The bucket is made up: each object is the same picture under another name. It is listed and read
as any other, by the real client. Printed are the seconds until the first row of a new job while its
index still runs, and those of a run over the unchanged and over the slightly changed archive, with
the number of requests of each kind. Before that, so many files of predictions on S3 are balanced.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import click
import pyarrow as pa

from cctmn import schema, studies, tables
from cctmn.score import commit, reconcile
from cctmn.score.prediction_files import PredictionFiles
from tests.cluster_nodes.nodes import wait_for
from tests.makers import png
from tests.servers import free_ports
from tests.stand_in_command import environment

ANSWER_S = 0.02
BUCKET = "large"


class MadeUpBucket:
    """Answers the requests of S3 for one bucket of equal pictures."""

    def __init__(self, objects: int, *, answer_s: float = ANSWER_S) -> None:
        self.objects, self._answer_s = objects, answer_s
        self._picture = png(1)
        self.changed: set[int] = set()
        self.requests: Counter[str] = Counter()
        self.opened: set[str] = set()

    def key(self, number: int) -> str:
        return f"{number // 500:05d}/{number:07d}.png"

    def etag(self, number: int) -> str:
        return f"{number:031x}{1 if number in self.changed else 0}"

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        time.sleep(self._answer_s)
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        if not key:
            self.requests["LIST"] += 1
            body = self._page(parse_qs(environ["QUERY_STRING"]))
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [body.encode()]
        number = int(key.rsplit("/", 1)[1].split(".")[0])
        self.requests[environ["REQUEST_METHOD"]] += 1
        self.opened.add(key)
        first, last = 0, len(self._picture) - 1
        status = "200 OK"
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", "")):
            first, last = int(span[1]), min(last, int(span[2] or last))
            status = "206 Partial Content"
        body_bytes = self._picture[first : last + 1]
        headers = [("ETag", f'"{self.etag(number)}"'), ("Content-Length", str(len(body_bytes)))]
        start_response(status, headers)
        return [body_bytes] if environ["REQUEST_METHOD"] == "GET" else []

    def _page(self, query: dict[str, list[str]]) -> str:
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(self.objects, first + int(query.get("max-keys", ["1000"])[0]))
        entries = "".join(
            f"<Contents><Key>{escape(self.key(n))}</Key><Size>{len(self._picture)}</Size>"
            f"<ETag>&quot;{self.etag(n)}&quot;</ETag></Contents>"
            for n in range(first, last)
        )
        return _listing(entries, token=last if last < self.objects else None)


def made_server(bucket: Callable[..., Any], port: int = 0) -> Any:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any, **kwargs: Any) -> None:
            pass

    return make_server("127.0.0.1", port, bucket, threaded=True, request_handler=Quiet)


def serve(bucket: Callable[..., Any], port: int) -> None:
    made_server(bucket, port).serve_forever()


def lead_to(port: int) -> None:
    """Let the standard AWS variables lead to a server on this machine."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def served(bucket: MadeUpBucket) -> Iterator[None]:
    """Serve the bucket from a thread."""
    server = made_server(bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lead_to(server.server_port)
    yield
    server.shutdown()


def is_listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.stand_in_command", "score", f"s3://{BUCKET}", "-o"]
    return subprocess.Popen(
        [*command, str(out), "-m", "any", "-q", *options],
        env=environment(sleep_s=0.0),
        start_new_session=True,
        text=True,
    )


def indexed(out: Path) -> int:
    """Return the number of slices in the inventory."""
    folder = (out / "private/inventory").as_uri()
    return sum(len(t) for t in tables.read_each(tables.parquet_files(folder), ["slice_id"]))


class FolderBucket:
    """Answers the requests of S3 for one bucket: the files of a folder."""

    def __init__(self, folder: Path, *, answer_s: float = ANSWER_S) -> None:
        self._folder, self._answer_s = folder, answer_s

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        time.sleep(self._answer_s)
        path = self._folder / environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        method = environ["REQUEST_METHOD"]
        if path == self._folder:
            page = self._page(parse_qs(environ["QUERY_STRING"]))
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [page.encode()]
        if method == "PUT":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        elif not path.is_file():
            start_response("404 Not Found", [("Content-Length", "0")])
            return []
        data = b"" if method == "PUT" else path.read_bytes()
        start_response("200 OK", [("ETag", '"1"'), ("Content-Length", str(len(data)))])
        return [data] if method == "GET" else []

    def _page(self, query: dict[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        every = (path for path in self._folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in every}
        names = sorted(name for name in sizes if name.startswith(prefix))
        first = int(query.get("continuation-token", ["0"])[0])
        last = min(len(names), first + int(query.get("max-keys", ["1000"])[0]))
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{sizes[name]}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag></Contents>"
            for name in names[first:last]
        )
        return _listing(entries, token=last if last < len(names) else None)


def _listing(entries: str, *, token: int | None) -> str:
    more = "" if token is None else f"<NextContinuationToken>{token}</NextContinuationToken>"
    truncated = str(token is not None).lower()
    return (
        f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{entries}"
        "</ListBucketResult>"
    )


@contextmanager
def served_by_another_process(folder: Path) -> Iterator[None]:
    """Serve a folder as the bucket; the server takes no time of this process."""
    [port] = free_ports(1)
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(FolderBucket(folder), port), daemon=True
    )
    process.start()
    lead_to(port)
    try:
        wait_for(lambda: is_listening(port), "the server")
        yield
    finally:
        process.kill()
        process.join()


def balance(files: int) -> float:
    """Return the seconds that the bookkeeping of so many prediction files on S3 takes."""
    columns = schema.predictions(("control", "pneumonia", "covid"))
    stamp = commit.Stamp.of(fingerprint="f" * 32, key=b"k" * 32)
    empty = dict.fromkeys(columns.names)
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "out"
        rng = random.Random(1)
        rows = [
            {"slice_id": f"{rng.getrandbits(128):032x}", "study_key": f"{n % 97:02x}"}
            for n in range(16 * files)
        ]
        (out / "predictions").mkdir(parents=True)
        for at in range(0, len(rows), 16):
            held = [empty | {"error_code": "", "flags": []} | row for row in rows[at : at + 16]]
            table = pa.Table.from_pylist(held, schema=columns)
            folder = (out / "predictions").as_uri()
            commit.write(table, folder=folder, schema=columns, stamp=stamp)
        inventory = pa.Table.from_pylist(
            [dict.fromkeys(schema.INVENTORY.names) | {"slice_id": r["slice_id"]} for r in rows],
            schema=schema.INVENTORY,
        )
        folder = (out / "private/inventory").as_uri()
        tables.put_private(inventory, folder, name="g000000-000000")
        with served_by_another_process(Path(made)):
            began = time.monotonic()
            done = PredictionFiles(f"s3://{BUCKET}/out/predictions", stamp=stamp)
            done.refresh()
            counts = reconcile.count(done, inventory=f"s3://{BUCKET}/out/private/inventory")
            assert (counts.ok, counts.pending) == (16 * files, 0)
            studies.write(f"s3://{BUCKET}/out", rule=studies.StudyRule("softmax"))
            return time.monotonic() - began


@click.command()
@click.option("--objects", default=200_000, show_default=True, help="Of the archive; 0: none.")
@click.option("--files", default=10_000, show_default=True, help="Of predictions; 0: none.")
def main(objects: int, files: int) -> None:
    """Print what a job over so many objects, and with so many files of predictions, costs."""
    if files:
        click.echo(f"{files:,} files of predictions are balanced in {balance(files):.0f} s")
    if objects:
        archive(objects)


def archive(objects: int) -> None:
    """Print what a job over so many objects costs."""
    bucket = MadeUpBucket(objects)
    with served(bucket), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        began = time.monotonic()
        job = start(out)
        while job.poll() is None and not list(out.glob("predictions/*.parquet")):
            time.sleep(0.1)
        first_s, of_index = time.monotonic() - began, indexed(out)
        click.echo(f"first row after {first_s:.0f} s, with {of_index:,} of {objects:,} indexed")
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        time.sleep(3)  # Ray's own processes end
        known = indexed(out)
        # The limit keeps the scoring of this measurement short; the index is of all objects.
        click.echo(f"killed with {known:,} indexed, run again: {again(bucket, out, limit=100)}")
        for text, changed in (("unchanged", set()), ("1 % changed", set(range(0, objects, 100)))):
            bucket.changed = changed
            click.echo(f"{text}: {again(bucket, out, limit=1)}")


def again(bucket: MadeUpBucket, out: Path, *, limit: int) -> str:
    """Run the job once more, and return what that cost."""
    bucket.opened.clear()
    bucket.requests.clear()
    began = time.monotonic()
    start(out, "--limit", str(limit)).wait()
    elapsed_s = time.monotonic() - began
    return f"{elapsed_s:.0f} s, {len(bucket.opened):,} objects opened, {dict(bucket.requests)}"


if __name__ == "__main__":
    main()
