"""Fail each single request of a scoring job once, in each way, and check its rows.

    python -m tests.faults --seed 1

INPUT and OUT are on moto, behind the proxy of tests/faultproxy.py, for the driver and for Ray's
workers. The first job runs undisturbed, and its requests are what fails in the jobs after it.
tests/score/test_faults.py does the same with several faults in one job.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import click
import pyarrow.parquet as pq
import pytest

from cctmn.score import models
from cctmn.store import s3 as s3_module
from cctmn.store import s3_client
from tests.commands import call
from tests.conftest import S3Server, SharedRay, s3_server
from tests.faultproxy import FAULTS, FaultProxy, Request, Rule
from tests.makers import dicom, png, stand_in, zipped
from tests.score.conftest import results

IN, OUT = "faults-in", "faults-out"
# Seven loose objects and a zip of three; the listing has several pages.
PAGE_KEYS = 3
SLICES = 10
# The same command is run again after each stop, as a person does it.
MOST_RUNS = 25
# Ends of the command that the same command resumes.
STOPS = (2, 4)
# What the script counts that is not a fault of the job.
HARMLESS = frozenset({"jobs", "not reached", "stopped and resumed"})
# What is said where another writer, a changed file or a weaker server was found; here is none.
FALSE_NOTES = ("removed", "have changed", "does not know conditional", "no progress")


@dataclass
class Outcome:
    """What came of a job: its runs until exit 0, why they stopped, and what is wrong."""

    runs: int = 0
    stops: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def upload(s3: S3Server) -> None:
    s3.bucket(IN)
    s3.bucket(OUT)
    for n in range(7):
        s3.upload(IN, f"in/{n}", png(n, side=80) if n else dicom(n))
    s3.upload(IN, "in/z.zip", zipped({f"m{n}": png(20 + n, side=80) for n in range(3)}))


@contextlib.contextmanager
def led_through(proxy: FaultProxy) -> Iterator[None]:
    """Lead the S3 clients of this process, and of a Ray that starts in it, through the proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.delenv("AWS_MAX_ATTEMPTS")  # of the tests; a job has more
        patch.setattr(s3_module, "PAGE_KEYS", PAGE_KEYS)
        # A real network takes a worker 4 s to load, and asks nothing of storage.
        patch.setattr(models, "open_source", lambda _, **__: stand_in())
        s3_client.clear()
        yield
    s3_client.clear()
    s3_module._check_bucket.cache_clear()


def kind(request: Request) -> str:
    """Return a request without what differs from job to job: OUT, keys, ranges and tokens."""
    url = urlsplit(request.path)
    bucket, _, key = unquote(url.path)[1:].partition("/")
    query = parse_qs(url.query)
    verb = request.method
    if "list-type" in query:
        verb, key = "LIST", query.get("prefix", [""])[0]
        verb += " page" if "continuation-token" in query else ""
    elif verb == "GET" and bucket == IN:
        # The index reads the beginning of an object, the workers read all of it.
        verb += " head" if request.range == "bytes=0-1023" else " range" * ("zip" in key)
        key = "z.zip" if "zip" in key else "*"
    if bucket == OUT:
        key = re.sub(r"[0-9a-f]{16}-[0-9a-f]{16}", "*", key.partition("/")[2])
        key = re.sub(r"g\d{6}-\d{6}", "*", key)
    return f"{verb} {bucket.removeprefix('faults-')}/{key}"


def area(name: str) -> str:
    """Return the part of the job that a kind of request belongs to: input, tables or folder."""
    verb, place = name.split()[0], name.split()[-1]
    if place.startswith("in/"):
        return "input"
    is_table = place.endswith((".parquet", "/")) and verb not in ("PUT", "DELETE")
    return "tables" if is_table else "folder"


def can_fail(name: str, fault: str) -> bool:
    """Return whether a request of this kind has a body that can be cut or slow."""
    return fault not in ("cut", "slow") or name.startswith(("GET", "LIST"))


def rules_for(kinds: Sequence[str], *, fault: str, clean: Counter[str]) -> list[Rule]:
    """Fail the first and the last request of each kind, as the undisturbed job made them."""
    rules = []
    for name in kinds:
        for position in sorted({0, clean[name] - 1}):
            rules.append(one_rule(name, position=position, fault=fault))
    return rules


def one_rule(name: str, *, position: int, fault: str) -> Rule:
    return Rule(FAULTS[fault], lambda request: kind(request) == name, skip=position, times=1)


def objects(s3: S3Server, prefix: str) -> dict[str, bytes]:
    """The objects below a prefix of OUT's bucket, read past the proxy and past cctmn."""
    client = s3.client()
    listed = client.list_objects_v2(Bucket=OUT, Prefix=prefix).get("Contents", [])
    keys = [entry["Key"] for entry in listed]
    return {key: client.get_object(Bucket=OUT, Key=key)["Body"].read() for key in keys}


def rows_of(s3: S3Server, out: str) -> list[tuple[str, dict[str, object]]]:
    """Name and content of each row."""
    names = {}
    for data in objects(s3, f"{out}/private/inventory/").values():
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            names[row["slice_id"]] = f"{row['uri'].rsplit('/', 1)[1]}::{row['member']}"
    rows = []
    for data in objects(s3, f"{out}/predictions/").values():
        rows += pq.read_table(io.BytesIO(data)).to_pylist()
    return sorted((names[row["slice_id"]], results(row)) for row in rows)


def score(
    s3: S3Server,
    out: str,
    *,
    expected: Sequence[object] | None,
    below: str = "in",
    slices: int = SLICES,
    most_runs: int = MOST_RUNS,
) -> Outcome:
    """Run the command until it ends with 0, and compare the rows with those expected."""
    outcome = Outcome()
    words = ["score", f"s3://{IN}/{below}", "-o", f"s3://{OUT}/{out}", "-m", "model"]
    words += ["--set", "actors=1", "--max-error-rate", "1"]
    words += ["--set", "block_rows=4"] if slices == SLICES else []
    while outcome.runs < most_runs:
        outcome.runs += 1
        s3_module._check_bucket.cache_clear()  # as in a process of its own
        try:
            done = call(*words)
        except Exception as error:  # noqa: BLE001 - a traceback, where one line was due
            [text] = traceback.format_exception_only(error)[-1:]
            outcome.problems.append(f"traceback: {text.strip().splitlines()[0][:200]}")
            continue
        lines = done.stderr.splitlines()
        if false := [line for line in lines if any(word in line for word in FALSE_NOTES)]:
            outcome.problems.append(f"false note: {false[0][:200]}")
        if done.returncode == 0:
            break
        errors = [line for line in lines if line.startswith("error: ")]
        outcome.stops.append(f"exit {done.returncode}: {' | '.join(errors)[:200]}")
        if done.returncode not in STOPS or len(errors) != 1 or lines[-1] != errors[0]:
            outcome.problems.append(f"not one line: {outcome.stops[-1]}")
        before = rows_of(s3, out)
        if len(before) != len({name for name, _ in before}):
            outcome.problems.append("doubled before it was resumed")
    else:
        outcome.problems.append("never done")
    rows = rows_of(s3, out)
    if codes := sorted({str(row["error_code"]) for _, row in rows} - {""}):
        outcome.problems.append(f"error row: {', '.join(codes)}")
    elif expected is not None and rows != expected:
        outcome.problems.append(
            f"rows: {len(rows)}, {len({name for name, _ in rows})} of them once"
        )
    left = objects(s3, f"{out}/")
    counts = json.loads(left.get(f"{out}/manifest.json", b"{}")).get("counts", {})
    if counts.get("inventory") != slices or counts.get("pending") != 0:
        outcome.problems.append(f"manifest: {counts}")
    if f"{out}/private/lock" in left:
        outcome.problems.append("the lock is left")
    return outcome


@click.command()
@click.option("--seed", default=1, show_default=True, help="Of the order of the jobs.")
@click.option("--minutes", default=60.0, show_default=True, help="No job starts after this.")
def main(seed: int, minutes: float) -> None:
    """Count jobs that a single fault has stopped, and those that lost or doubled a row."""
    shared_ray = SharedRay()
    with s3_server() as s3, contextlib.ExitStack() as running:
        proxy = FaultProxy(s3.endpoint)
        proxy.start()
        running.callback(proxy.stop)
        upload(s3)
        running.enter_context(led_through(proxy))
        shared_ray.address()
        running.callback(shared_ray.stop)
        score(s3, "warm", expected=None)
        proxy.use()
        assert score(s3, "clean", expected=None) == Outcome(runs=1)
        clean = Counter(map(kind, proxy.requests))
        expected = rows_of(s3, "clean")
        assert len(expected) == SLICES
        for name, times in clean.items():
            click.echo(f"{times:4} x {name}")
        trials = [
            (name, position, fault)
            for name, times in clean.items()
            for position in range(times)
            for fault in FAULTS
            if can_fail(name, fault)
        ]
        random.Random(seed).shuffle(trials)
        click.echo(f"{sum(clean.values())} requests, {len(trials)} jobs")
        end = time.monotonic() + 60 * minutes
        tally: Counter[str] = Counter()
        for number, (name, position, fault) in enumerate(trials):
            if time.monotonic() > end:
                break
            rule = one_rule(name, position=position, fault=fault)
            proxy.use(rule)
            outcome = score(s3, f"t{number}", expected=expected)
            tally["jobs"] += 1
            tally["not reached"] += not rule.fired
            tally["stopped and resumed"] += bool(outcome.stops)
            for problem in outcome.problems:
                tally[problem.partition(":")[0]] += 1
            if outcome.stops or outcome.problems:
                click.echo(f"{fault} {name} #{position}: {outcome.stops} {outcome.problems}")
        assert not proxy.failures, proxy.failures
        click.echo(f"{dict(tally)}")
    raise SystemExit(any(count for what, count in tally.items() if what not in HARMLESS))


if __name__ == "__main__":
    main()
