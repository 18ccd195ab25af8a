"""Measure how the rate of scoring grows with scorers and with nodes, relative to linear scaling.

    python -m tests.scaling

A stand-in for the network sleeps, so that the number of cores is not the limit. A rate is measured
on the steady part: from when the last scorer has begun to when the first has nothing left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import ray
from ray.cluster_utils import Cluster

from cctmn.config import ScoreConfig
from cctmn.score import run
from tests.clocked import batches_of, clocked, steady
from tests.cluster_nodes.test_scaling import BATCH, STORE
from tests.makers import png

RATE = 10.0  # slices/s of a scorer; some 4 ms of CPU go into reading and writing one
STEADY_S = 4.0  # about

GPUS_OF_NODES = {"scorers on one node": ([1], [2], [4]), "nodes": ([1], [1, 1], [1, 1, 1])}


def measure(folder: Path, *, gpus: list[int]) -> float:
    """Score on a new cluster whose nodes have so many fake GPUs, with one scorer on each GPU."""
    scorers, slices = sum(gpus), folder / "slices"
    slices.mkdir(parents=True)
    for n in range(int(scorers * STEADY_S * RATE)):
        (slices / f"{n}.png").write_bytes(png(n % 10))
    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        for count in gpus:
            cluster.add_node(num_cpus=2, num_gpus=count, object_store_memory=STORE)
        cluster.wait_for_nodes()
        settings = ScoreConfig(actors=scorers, gpus=1, batch_size=BATCH, block_rows=8)
        source = clocked(folder / "clock", slices_per_s=RATE)
        run.score(run.ScoreJob([str(slices)], str(folder / "out"), source, settings))
        return steady(batches_of(folder / "clock")).slices_per_s
    finally:
        ray.shutdown()
        cluster.shutdown()


@click.command()
def main() -> None:
    """Print the rates and their ratios to linear scaling."""
    for what, clusters in GPUS_OF_NODES.items():
        with tempfile.TemporaryDirectory() as made:
            rates = {sum(g): measure(Path(made) / str(sum(g)), gpus=g) for g in clusters}
        for count, value in rates.items():
            linear = value / (count * rates[1])
            click.echo(f"{count} {what}: {value:.2f} slices/s, {linear:.3f} of linear")


if __name__ == "__main__":
    main()
