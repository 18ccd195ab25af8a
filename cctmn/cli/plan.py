"""The command `plan`: what a job will take, before anything is rented."""

from __future__ import annotations

import json
from typing import Any

import click

from cctmn.cli.common import finite
from cctmn.errors import ConfigError

# Example prices in US dollars, for a plan without the user's own.
GPU_HOUR, CORE_HOUR, MILLION_READS, MILLION_WRITES = 7.0, 0.05, 0.4, 5.0
_POSITIVE = click.FloatRange(min=0, min_open=True)
_PRICE = click.FloatRange(min=0)


@click.command(
    epilog="""\b
Example:
  cctmn plan --slices 10e6 -m model --gpus 8
  cctmn plan --slices 58782 -m resnet18 --cores 64 --core-price 0.04
"""
)
@click.option(
    "--slices", type=click.FloatRange(min=1), callback=finite, required=True, help="How many."
)
@click.option(
    "-m",
    "--model",
    required=True,
    metavar="MODEL",
    help="Model folder, local or s3://, or the name of its backbone, for example resnet18.",
)
@click.option("--gpus", type=click.IntRange(min=1), help="Number of GPUs.")
@click.option("--cores", type=click.IntRange(min=1), help="Number of CPU cores, without GPUs.")
@click.option("--device", default="h100", show_default=True, help="Kind of GPU.")
@click.option(
    "--rate",
    type=_POSITIVE,
    callback=finite,
    help="Slices per second of one GPU or core, measured with `cctmn score --limit`; without it, "
    "from a table.",
)
@click.option(
    "--decode-ms",
    type=_PRICE,
    callback=finite,
    default=6.0,
    show_default=True,
    help="CPU time to decode a slice; about 29 for JPEG 2000.",
)
@click.option("--objects", type=click.IntRange(min=1), help="Objects in storage [one per slice].")
@click.option(
    "--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True, help="GPUs."
)
@click.option(
    "--cores-per-node",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Cores of a node, with GPUs or without.",
)
@click.option(
    "--gpu-price",
    type=_PRICE,
    callback=finite,
    default=GPU_HOUR,
    show_default=True,
    help="Price of a GPU hour with the cores beside it; the default is an example.",
)
@click.option(
    "--core-price",
    type=_PRICE,
    callback=finite,
    default=CORE_HOUR,
    show_default=True,
    help="Price of a core hour on nodes without GPUs; the default is an example.",
)
@click.option(
    "--read-price",
    type=_PRICE,
    callback=finite,
    default=MILLION_READS,
    show_default=True,
    help="Price of a million reads from storage; the default is an example.",
)
@click.option(
    "--write-price",
    type=_PRICE,
    callback=finite,
    default=MILLION_WRITES,
    show_default=True,
    help="Price of a million writes or listings; the default is an example.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def plan(
    *,
    slices: float,
    model: str,
    gpus: int | None,
    cores: int | None,
    device: str,
    rate: float | None,
    decode_ms: float,
    objects: int | None,
    gpus_per_node: int,
    cores_per_node: int,
    gpu_price: float,
    core_price: float,
    read_price: float,
    write_price: float,
    as_json: bool,
) -> None:
    """Estimate hours, nodes, files, requests and cost of a job.

    Give --gpus or --cores. Rates of GPUs are estimates until --rate says what one did with your
    slices. Prices are your provider's; the defaults are examples in US dollars.
    """
    if (gpus is None) == (cores is None):
        raise ConfigError("either --gpus or --cores is needed; give one of them")

    from cctmn.score import forecast as module
    from cctmn.score.rates import CORE

    count = gpus or cores or 1
    kind = device.lower() if gpus else CORE
    machines = module.Machines(kind, count, min(gpus_per_node, count), cores_per_node)
    archive = module.Archive(round(slices), objects or round(slices), decode_ms)
    numbers = module.forecast(
        archive,
        rate=module.rate_of(kind, model=model, given=rate),
        machines=machines,
        prices=module.Prices(gpu_price, core_price, read_price, write_price),
    )
    click.echo(json.dumps(numbers, indent=2) if as_json else _text(numbers))


def _text(numbers: dict[str, Any]) -> str:
    cost, rate_is = numbers["cost"], numbers["rate_is"]
    source = "" if rate_is == numbers["rate_source"] else f": {numbers['rate_source']}"
    lines = [
        f"{numbers['slices']:,} slices on {numbers['devices']:,} x {numbers['device']}, "
        f"{numbers['slices_per_s_and_device']:,g} slices/s each ({rate_is}{source})",
        f"{numbers['hours']:>12,.2f}  hours, at {numbers['efficiency']:.0%} of that rate and with "
        "the start of the nodes",
        f"{numbers['gpu_nodes']:>12,}  nodes with GPUs",
        f"{numbers['cpu_nodes']:>12,}  nodes without GPUs",
        f"{numbers['cores_that_decode']:>12,g}  cores that decode for the GPUs",
        f"{numbers['files']:>12,}  files of predictions",
        f"{numbers['reads']:>12,}  reads, {numbers['writes_and_listings']:,} writes and listings",
        f"{numbers['total_cost']:>12,.2f}  cost: GPUs {cost['gpus']:,.2f}, cores "
        f"{cost['cores']:,.2f}, requests {cost['requests']:,.2f}, in the currency of the prices",
    ]
    if numbers["useful_devices"] < numbers["devices"]:
        lines.append(
            f"caution: a job of this size starts {numbers['useful_devices']:,} scorers; the other "
            "devices would stay idle"
        )
    return "\n".join(lines)
