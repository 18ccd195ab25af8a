"""A scoring job on storage whose requests fail for a moment: no row is lost, doubled or an error.

`python -m tests.faults` fails each single request by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests import faults
from tests.conftest import S3Server, SharedRay
from tests.faultproxy import FAULTS, FaultProxy, Rule
from tests.makers import png

pytestmark = [pytest.mark.slow, pytest.mark.ray]

MANY = 1_000  # the index and a worker read each, so about a hundred requests fail
AREAS = ("input", "folder", "tables")
MIXED_SEED = 1


@dataclass
class Bench:
    """Storage behind a proxy, a Ray that is led through it, and a job that nothing disturbed."""

    s3: S3Server
    proxy: FaultProxy
    expected: Sequence[object] = ()
    clean: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def bench(s3: S3Server, shared_ray: SharedRay) -> Iterator[Bench]:
    one = Bench(s3, FaultProxy(s3.endpoint))
    one.proxy.start()
    faults.upload(s3)
    # Workers find their endpoint in the environment of the Ray that starts them.
    shared_ray.stop()
    with faults.led_through(one.proxy):
        shared_ray.address()
        assert faults.score(s3, "clean", expected=None) == faults.Outcome(runs=1)
        one.clean.update(map(faults.kind, one.proxy.requests))
        one.expected = faults.rows_of(s3, "clean")
        yield one
        shared_ray.stop()
    one.proxy.stop()
    assert not one.proxy.failures


def test_the_undisturbed_job_scores_all_and_its_requests_are_known(bench: Bench) -> None:
    assert len(bench.expected) == faults.SLICES
    assert {faults.area(kind) for kind in bench.clean} == set(AREAS)
    assert {kind.split()[0] for kind in bench.clean} >= {"GET", "PUT", "LIST", "DELETE"}
    assert bench.clean["LIST page in/in/"] == 2


@pytest.mark.parametrize(
    ("fault", "area"),
    [(fault, area) for fault in FAULTS for area in AREAS],
)
def test_the_first_and_the_last_request_of_each_kind_fail_once(
    bench: Bench, fault: str, area: str
) -> None:
    kinds = [k for k in bench.clean if faults.area(k) == area and faults.can_fail(k, fault)]
    rules = faults.rules_for(kinds, fault=fault, clean=bench.clean)
    bench.proxy.use(*rules)
    outcome = faults.score(bench.s3, f"{fault}-{area}", expected=bench.expected)
    assert [rule for rule in rules if rule.skip == 0 and not rule.fired] == []
    assert outcome.problems == []


@pytest.mark.timeout(900)
def test_one_in_twenty_of_all_requests_fails_in_mixed_ways(bench: Bench) -> None:
    contents = [png(n, side=72) for n in range(40)]
    client = bench.s3.client()
    for n in range(MANY):
        client.put_object(Bucket=faults.IN, Key=f"many/{n}", Body=contents[n % 40])
    each = 0.05 / len(FAULTS)
    rules = [Rule(fault, probability=each) for fault in FAULTS.values()]
    bench.proxy.use(*rules, seed=MIXED_SEED)
    outcome = faults.score(bench.s3, "many", expected=None, below="many", slices=MANY)
    assert {request.fault for request in bench.proxy.requests} == {"", *FAULTS}
    names = [name for name, _ in faults.rows_of(bench.s3, "many")]
    assert len(names) == len(set(names)) == MANY
    assert outcome.problems == []
