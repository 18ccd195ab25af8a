"""Simulate a scoring job on GPUs, and print how busy the scorers are and what limits them.

    python -m tests.feeding
    python -m tests.feeding --layout mixed --rate 3000 --side 64

Stand-ins for scorers sleep as long as a GPU of the given rate computes, and stand-ins for decoders
as long as a core decodes, so that few cores can simulate many. All else is the job's own: the
graph, the pixels in Ray's object store, the rows, the files. `--side 64` makes the pixels small
where the memory of this machine is the limit.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import config, runtime, store, tables
from cctmn.config import ScoreConfig
from cctmn.score import commit, pipeline, sizing
from tests.clocked import Steady, batches_of, clocked, prepare_block, steady

# CPUs and GPUs of the nodes; the first is the head.
LAYOUTS: dict[str, list[tuple[int, int]]] = {
    "one": [(48, 8)],
    "half": [(24, 4)],
    "two": [(14, 2)],
    "mixed": [(4, 0), (32, 0), (12, 4), (12, 4)],
}
STORE_BYTES = 12 << 30  # of the object stores of all nodes; little of it is used
TODO_ROWS = 50_000  # per file
BUSY = 0.95  # a fraction of the time above which something is the limit
LEFT_OUT = 0.5  # of the time that all scorers work: processes of decoders still start then
LOOK_S = 1.0


def cpu_s() -> Counter[str]:
    """The CPU time until now of this process and its children, s, and of the whole machine."""
    machine = psutil.cpu_times()
    found = Counter({"machine": sum(machine) - machine.idle - machine.iowait})
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            line = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        role = "driver" if process.pid == psutil.Process().pid else "Ray's servers"
        if line.startswith("ray::"):
            role = "scorers" if "_ScoreBlock" in line else "tasks"
        found[role] += times.user + times.system
    return found


@dataclass
class Machine:
    """What this machine does meanwhile: CPU time by role at some times, and shared memory."""

    looks: list[tuple[float, Counter[str]]] = field(default_factory=list)  # s since the epoch
    driver_bytes: list[int] = field(default_factory=list)  # its resident memory at each look
    shared_bytes: int = 0

    def cores(self, begin: float, end: float) -> dict[str, float]:
        """Return how many cores each role used between two times, as fractions of all cores."""
        inside = [look for look in self.looks if begin <= look[0] <= end]
        assert len(inside) > 1, "too short to be measured; give more --slices"
        (first, before), (last, after) = inside[0], inside[-1]
        wall_s = (last - first) * (psutil.cpu_count() or 1)
        used = {role: max(0.0, after[role] - before[role]) / wall_s for role in after}
        used["others"] = max(0.0, 2 * used["machine"] - sum(used.values()))
        return used


@contextmanager
def watched() -> Iterator[Machine]:
    """Look at the machine again and again."""
    machine, done = Machine(), threading.Event()
    before = psutil.disk_usage("/dev/shm").used

    def watch() -> None:
        while not done.wait(LOOK_S):
            machine.looks.append((time.time(), cpu_s()))
            machine.driver_bytes.append(psutil.Process().memory_info().rss)
            used = psutil.disk_usage("/dev/shm").used - before
            machine.shared_bytes = max(machine.shared_bytes, used)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield machine
    finally:
        done.set()
        thread.join()


@contextmanager
def cluster(layout: str) -> Iterator[None]:
    """Start a Ray whose nodes claim the CPUs and GPUs of a layout."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = [
        {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": STORE_BYTES // len(LAYOUTS[layout]),
        }
        for cpus, gpus in LAYOUTS[layout]
    ]
    for node in nodes:
        if node["num_gpus"]:
            node["labels"] = {runtime.GPU_TYPE: "H100"}
    made = Cluster(initialize_head=True, head_node_args=nodes[0] | {"include_dashboard": False})
    try:
        ray.init(address=made.address, log_to_driver=False)
        for node in nodes[1:]:
            made.add_node(**node)
        made.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        made.shutdown()


@dataclass(frozen=True)
class Simulated:
    """The outcome of one simulated job."""

    scorers: Steady
    decoders: float  # fraction of the CPUs that may decode which do
    cores: dict[str, float]  # fraction of this machine's cores in use, by role
    driver_bytes: tuple[int, int]  # at a quarter of the job and at its end
    shared_bytes: int
    files: int
    all_slices_per_s: float  # from the first batch to the last

    @property
    def limit(self) -> str:
        """What keeps the job from more slices per second."""
        if self.scorers.busy >= BUSY:
            return "the scorers"
        if self.cores["machine"] >= BUSY:
            return "the cores of this machine, which simulates all others"
        if self.decoders >= BUSY:
            return "the decoders"
        return "neither scorers, decoders nor cores: waiting in between"


def simulate(
    folder: Path, *, slices: int, rate: float, decode_ms: float, side: int, settings: ScoreConfig
) -> Simulated:
    """Score so many stand-ins for slices on the cluster that is connected."""
    todo, out, clock = folder / "todo", folder / "out", folder / "clock"
    todo.mkdir(parents=True)
    out.mkdir()
    for begin in range(0, slices, TODO_ROWS):
        names = [f"{n:016x}" for n in range(begin, min(slices, begin + TODO_ROWS))]
        pq.write_table(pa.table({"slice_id": names}), todo / f"{begin:09}.parquet")
    plan = sizing.make_plan(runtime.resources(), settings, pending=slices)
    plan_text = f"{plan.actors} scorers of {plan.scorer_cpus:g} CPU, blocks of {plan.block_rows}"
    click.echo(f"  {plan_text}, files of {plan.commit_rows}, avoided: {plan.avoided_gpu_types}")
    source = clocked(clock, slices_per_s=rate)
    standing_in = functools.partial(prepare_block, decode_ms=decode_ms, side=side)
    kept = pipeline._prepare_block
    pipeline._prepare_block = standing_in  # type: ignore[assignment]
    try:
        with watched() as machine:
            stamp = commit.Stamp("", "")
            blocks = pipeline.execute(
                tables.parquet_files(store.to_uri(str(todo))),
                out=store.to_uri(str(out)),
                source=source,
                key=b"",
                plan=plan,
                stamp=stamp,
            )
            assert sum(block.rows for block in blocks) == slices
    finally:
        pipeline._prepare_block = kept
    files = list(out.iterdir())
    assert sum(pq.read_metadata(path).num_rows for path in files) == slices
    batches = batches_of(clock)
    found = steady(batches, left_out=LEFT_OUT)
    begin = min(one[0][0] for one in batches)
    end = max(one[-1][1] for one in batches)
    resources = runtime.resources()
    cpus = resources.cpus_elsewhere if plan.avoided_gpu_types else resources.cpus
    driver = machine.driver_bytes
    cpus -= 0 if plan.avoided_gpu_types else len(batches) * plan.scorer_cpus
    return Simulated(
        scorers=found,
        decoders=found.slices_per_s * decode_ms / 1e3 / cpus,
        cores=machine.cores(found.begin, found.end),
        driver_bytes=(driver[len(driver) // 4], driver[-1]),
        shared_bytes=machine.shared_bytes,
        files=len(files),
        all_slices_per_s=slices / (end - begin),
    )


def _listed(cores: dict[str, float]) -> str:
    parts = ", ".join(f"{role} {used:.0%}" for role, used in cores.items() if role != "machine")
    return f"{cores['machine']:.0%} ({parts})"


@click.command()
@click.option(
    "--layout", type=click.Choice(list(LAYOUTS)), multiple=True, help="Nodes to simulate."
)
@click.option("--rate", type=float, default=450, show_default=True, help="Slices/s of a scorer.")
@click.option("--decode-ms", type=float, default=5, show_default=True, help="Time to decode one.")
@click.option("--side", type=int, default=512, show_default=True, help="Pixels of a side.")
@click.option("--slices", type=int, multiple=True, default=[100_000], show_default=True)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting of the job.")
def main(
    layout: tuple[str, ...],
    rate: float,
    decode_ms: float,
    side: int,
    slices: tuple[int, ...],
    sets: tuple[str, ...],
) -> None:
    """Print how busy scorers are, the rate, the peak of shared memory, and what is the limit."""
    settings = config.load(ScoreConfig, sets=sets)
    for name in layout or tuple(LAYOUTS):
        with cluster(name):
            for count in slices:
                with tempfile.TemporaryDirectory() as made:
                    one = simulate(
                        Path(made),
                        slices=count,
                        rate=rate,
                        decode_ms=decode_ms,
                        side=side,
                        settings=settings,
                    )
                quarter, end = one.driver_bytes
                click.echo(
                    f"{name}, {count:,} slices: scorers {one.scorers.busy:.1%} busy, "
                    f"{one.scorers.slices_per_s:,.0f} slices/s in {one.scorers.seconds:.0f} s "
                    f"({one.all_slices_per_s:,.0f} with start and end), decoders "
                    f"{one.decoders:.0%}, this machine's cores {_listed(one.cores)}, shared memory "
                    f"{one.shared_bytes / 2**30:.1f} GiB, driver {quarter >> 20} MiB at a quarter "
                    f"of the job and {end >> 20} at its end, {one.files} files; limit: {one.limit}"
                )


if __name__ == "__main__":
    main()
