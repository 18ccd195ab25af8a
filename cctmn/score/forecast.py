"""What a job will take: hours, nodes, files, requests and cost, from rates and stated prices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from cctmn import runtime
from cctmn.classes import BACKBONES
from cctmn.config import ScoreConfig
from cctmn.errors import ConfigError
from cctmn.model.card import read_card
from cctmn.score import rates, sizing
from cctmn.score.rates import CORE, RATES, Rate

GIVEN: Final = "given"


@dataclass(frozen=True)
class Machines:
    """The machines that are to score: so many GPUs of one kind, or so many cores."""

    device: str  # of RATES
    count: int
    gpus_per_node: int
    cores_per_node: int


@dataclass(frozen=True)
class Prices:
    """Prices in one currency. The command's defaults are examples."""

    gpu_hour: float  # with the cores of its node
    core_hour: float
    million_reads: float
    million_writes: float


@dataclass(frozen=True)
class Archive:
    """The number of slices and of the objects that hold them, and the time to decode a slice."""

    slices: int
    objects: int
    decode_ms: float


def backbone_of(model: str) -> str:
    """Return the backbone of a model folder; the name of a backbone stands for itself."""
    return model if model in BACKBONES else read_card(model).arch.backbone


def rate_of(device: str, *, model: str, given: float | None) -> Rate:
    """Return the rate of a device for a model, or the one that the user has measured.

    Raises ConfigError if neither is known.
    """
    if given is not None:
        return Rate(given, True, GIVEN)
    backbone = backbone_of(model)
    if (device, backbone) not in RATES:
        known = ", ".join(f"{name} with {model}" for name, model in RATES)
        raise ConfigError(
            f"no rate is known of {device} with {backbone}, only of {known}; give --rate, the "
            "slices per second of one of them"
        )
    return RATES[device, backbone]


def forecast(archive: Archive, *, rate: Rate, machines: Machines, prices: Prices) -> dict[str, Any]:
    """Return hours, nodes, files, requests and cost of a job, with the rate that they rest on.

    Nodes without GPUs are added where the cores of the GPU nodes cannot decode fast enough. The
    reads are those of loose objects; archives need about as many as they have slices, or fewer.
    """
    on_gpus = machines.device != CORE
    busy_s = 1 / rate.slices_per_s + (0 if on_gpus else archive.decode_ms / 1e3)
    per_s = machines.count * rates.EFFICIENCY / busy_s
    hours = archive.slices / per_s / 3600 + rates.START_H
    # 1. Nodes: one core per GPU launches its kernels, the others decode.
    gpu_nodes = math.ceil(machines.count / machines.gpus_per_node) if on_gpus else 0
    decoding = machines.count * rate.slices_per_s * archive.decode_ms / 1e3 if on_gpus else 0.0
    spare = gpu_nodes * machines.cores_per_node - machines.count
    wanted = max(0.0, decoding - spare) if on_gpus else machines.count
    cpu_nodes = math.ceil(wanted / machines.cores_per_node)
    # 2. Files and requests, as the job itself will choose them.
    cores = (gpu_nodes + cpu_nodes) * machines.cores_per_node
    plan = sizing.make_plan(
        runtime.Resources(cpus=cores, gpus=machines.count if on_gpus else 0),
        ScoreConfig(gpus=float(on_gpus), actors=0 if on_gpus else machines.count),
        pending=archive.slices,
    )
    files = math.ceil(archive.slices / plan.commit_rows)
    listings = math.ceil(archive.objects / rates.OBJECTS_PER_LISTING)
    reads = archive.objects * rates.READS_PER_OBJECT
    # 3. Cost: whole nodes for all of the time. Listings are priced as writes are.
    cost = {
        "gpus": gpu_nodes * machines.gpus_per_node * hours * prices.gpu_hour,
        "cores": cpu_nodes * machines.cores_per_node * hours * prices.core_hour,
        "requests": (reads * prices.million_reads + (files + listings) * prices.million_writes)
        / 1e6,
    }
    return {
        "slices": archive.slices,
        "device": machines.device,
        "devices": machines.count,
        "slices_per_s_and_device": rate.slices_per_s,
        "rate_is": GIVEN if rate.source == GIVEN else rate.origin,
        "rate_source": rate.source,
        "efficiency": rates.EFFICIENCY,
        "slices_per_s": round(per_s, 1),
        "hours": round(hours, 2),
        "gpu_nodes": gpu_nodes,
        "cpu_nodes": cpu_nodes,
        "cores_that_decode": round(decoding, 1),
        "useful_devices": min(machines.count, plan.actors),
        "files": files,
        "reads": reads,
        "writes_and_listings": files + listings,
        "cost": {name: round(value, 2) for name, value in cost.items()},
        "total_cost": round(sum(cost.values()), 2),
    }
