"""`cctmn plan`: hours, nodes, files, requests and cost, and the figures they rest on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cctmn.errors import ConfigError
from cctmn.read import inventory
from cctmn.read.fetch import fetch
from cctmn.score import forecast, rates
from cctmn.score.forecast import Archive, Machines, Prices
from cctmn.score.rates import CORE, Rate
from tests.commands import call, one_line
from tests.conftest import S3Server
from tests.makers import dicom

EIGHT = Machines("h100", 8, gpus_per_node=8, cores_per_node=64)
PRICES = Prices(gpu_hour=7, core_hour=0.05, million_reads=0.4, million_writes=5)


def of(
    slices: int = 10_000_000,
    *,
    rate: float = 450,
    machines: Machines = EIGHT,
    prices: Prices = PRICES,
    decode_ms: float = 6,
) -> dict[str, Any]:
    archive = Archive(slices, slices, decode_ms)
    return forecast.forecast(
        archive, rate=Rate(rate, True, "a test"), machines=machines, prices=prices
    )


def test_hours_are_those_of_the_scorers_and_of_the_start() -> None:
    busy_h = 10_000_000 / (8 * 450 * rates.EFFICIENCY) / 3600
    assert of()["hours"] == pytest.approx(busy_h + rates.START_H, abs=0.01)


def test_cores_decode_what_they_score() -> None:
    machines = Machines(CORE, 64, gpus_per_node=8, cores_per_node=64)
    one_s = 1 / 5.4 + 0.006
    found = of(1_000_000, rate=5.4, machines=machines)
    assert found["slices_per_s"] == pytest.approx(64 / one_s * rates.EFFICIENCY, rel=0.001)
    assert (found["gpu_nodes"], found["cpu_nodes"]) == (0, 1)


def test_nodes_without_gpus_are_added_where_decoding_is_slow() -> None:
    assert of()["cpu_nodes"] == 0
    cores = 8 * 450 * 0.029
    assert of(decode_ms=29)["cpu_nodes"] == math.ceil((cores - (64 - 8)) / 64) == 1


def test_files_are_those_that_the_job_writes() -> None:
    assert of()["files"] == math.ceil(10_000_000 / 8192)


def test_cost_is_that_of_whole_nodes_and_requests() -> None:
    found = of(prices=Prices(gpu_hour=1, core_hour=0, million_reads=0, million_writes=0))
    assert found["total_cost"] == pytest.approx(8 * found["hours"], abs=0.05)
    found = of(prices=Prices(gpu_hour=0, core_hour=0, million_reads=1, million_writes=0))
    assert found["total_cost"] == pytest.approx(found["reads"] / 1e6, abs=0.01)


def test_devices_that_a_small_job_does_not_need_are_counted() -> None:
    assert of(3_000)["useful_devices"] == 3


def test_every_rate_says_whether_it_was_measured() -> None:
    assert all(rate.source for rate in rates.RATES.values())
    assert {one for (one, _), rate in rates.RATES.items() if rate.is_measured} == {CORE}


def test_a_rate_of_the_user_comes_before_the_table() -> None:
    assert forecast.rate_of("h100", model="resnet18", given=300).slices_per_s == 300


def test_a_model_folder_is_known_by_the_backbone_of_its_card() -> None:
    assert forecast.backbone_of("cctmn:demo") == "resnet18"


def test_a_device_without_a_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --rate"):
        forecast.rate_of("abacus", model="resnet18", given=None)


def test_an_object_is_read_as_often_as_the_plan_counts(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.bucket("planned")
    for n in range(5):
        s3.upload("planned", f"{n}.dcm", dicom(n))
    requests: list[str] = []
    monkeypatch.setattr(s3, "fault", lambda request: requests.append(request["PATH_INFO"]))
    found = list(inventory.index(["s3://planned"], key=b"k" * 32))
    rows = [row for table in found for row in table.to_pylist()]
    assert len(list(fetch(rows, threads=2))) == 5
    assert sum(path.endswith(".dcm") for path in requests) == 5 * rates.READS_PER_OBJECT


def test_the_command_prints_the_plan() -> None:
    done = call("plan", "--slices", "10e6", "-m", "resnet18", "--gpus", "8")
    assert "10,000,000 slices on 8 x h100" in done.stdout
    assert "estimated" in done.stdout
    assert done.returncode == 0


def test_the_command_prints_json() -> None:
    args = ["plan", "--slices", "1e6", "-m", "cctmn:demo", "--cores", "64", "--json"]
    assert json.loads(call(*args).stdout)["rate_is"] == "measured"


def test_the_command_warns_of_devices_that_stay_idle() -> None:
    assert "caution" in call("plan", "--slices", "2000", "-m", "resnet18", "--gpus", "8").stdout


def test_a_plan_needs_gpus_or_cores() -> None:
    done = call("plan", "--slices", "10", "-m", "resnet18")
    one_line(done, code=2, message="either --gpus or --cores is needed")
