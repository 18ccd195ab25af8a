"""The Ray Data graph of a scoring job: read, fetch and decode, score, write Parquet.

Every block gives one block at each step until it is scored. A scored block has no pixels, so that
many fit into one file: a writing task gets whole blocks, and Ray runs it with the same blocks again
if a node is lost. A replay therefore repeats the same rows. Each output file commits its rows.

Fetching and scoring ask for different resources. Otherwise Ray would fuse them into one process and
nothing would overlap.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from cctmn import errors, runtime, schema, store
from cctmn.contract import InputContract
from cctmn.score import commit, gpu_failures, meters
from cctmn.score.scorer import GpuError, ModelSource, device_name, score

# On CPUs. A block that a scorer has taken waits for that scorer, also when its node dies, so the
# nodes that are left must have a place for it. Half a core each: half of the nodes can hold all
# scorers, with a core to spare for what feeds them.
SCORER_CPUS = 0.5
FETCH_CPUS = 0.4  # unequal to a scorer's
GPU_FETCH_CPUS = 1.0  # what a task uses that feeds scorers on GPUs
WRITE_CPUS = 0.25
# Blocks that a scorer on a GPU holds at a time: while the GPU has a batch of one, the processor
# makes rows of the other.
GPU_CALLS = 2
ACTOR_START_ATTEMPTS = 3  # one failure of a device must not end the job
STALL_S = 30 * 60  # many times what a block takes on a slow CPU


@dataclass(frozen=True)
class Plan:
    """How the graph is laid out on the cluster."""

    actors: int  # most of them; the pool grows with the cluster
    first_actors: int  # that the cluster has room for now
    fetchers: int | None  # tasks at once that fetch and decode; None = as many as there is room for
    gpus_per_actor: float  # 0 = CPU
    batch_size: int  # slices per forward pass
    block_rows: int  # slices per block
    commit_rows: int  # slices per file
    scorer_cpus: float  # that a scorer asks for
    avoided_gpu_types: tuple[str, ...]  # of nodes that are to decode nothing, by Ray's names
    fetch_threads: int
    ranked_boxes: bool
    masks: bool
    access: store.S3Access  # to the buckets of INPUT
    run: str = ""  # id in the metrics

    @property
    def num_devices(self) -> int:
        """Number of CPU cores or GPUs that score at first."""
        shared = self.gpus_per_actor if 0 < self.gpus_per_actor < 1 else 1
        return max(1, round(self.first_actors * shared))


@dataclass(frozen=True)
class Committed:
    """A block of rows that is committed, and the scorer that computed it."""

    rows: int
    scorer: str  # id of its process
    device_name: str


class Stalled(Exception):  # noqa: N818  (an end of this graph, not of the job)
    """Nothing moved for STALL_S: blocks wait for scorers that the cluster has no place for."""


class ScorerLost(Exception):  # noqa: N818  (an end of this graph, not of the job)
    """Scorers have ended for good with the blocks that they held; `gpus` has names."""

    def __init__(self, gpus: set[str]) -> None:
        super().__init__()
        self.gpus = gpus


class _ScoreBlock:
    """What an actor holds: the model, loaded once."""

    def __init__(self, *, source: ModelSource, plan: Plan) -> None:
        self._source, self._plan = source, plan
        if meters.stage(plan.run) != meters.SCORING:
            meters.reached(meters.LOADING, run=plan.run)
        self._scorer = source.load(plan.gpus_per_actor > 0)
        self._turn = threading.Lock()  # a network predicts one batch at a time
        self._id, self._device_name = secrets.token_hex(8), device_name(self._scorer)
        meters.reached(meters.SCORING, run=plan.run)

    def __call__(self, block: pa.Table) -> pa.Table:
        try:
            rows = score(
                block,
                scorer=self._scorer,
                source=self._source,
                batch_size=self._plan.batch_size,
                ranked_boxes=self._plan.ranked_boxes,
                masks=self._plan.masks,
                turn=self._turn,
            )
        except GpuError:
            gpu_failures.end_scorer(self._plan.run)
        meters.scored(rows, run=self._plan.run)
        for name, value in (("scorer", self._id), ("device_name", self._device_name)):
            rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
        return rows


def _prepare_block(block: pa.Table, *, source: ModelSource, key: bytes, plan: Plan) -> pa.Table:
    from cctmn.score.prepare import prepare  # which the scorers need not load

    began = time.perf_counter()
    store.set_s3_access(plan.access)
    contract = InputContract.from_card(source.input)
    rows = prepare(block, contract=contract, key=key, threads=plan.fetch_threads)
    meters.prepared(block, rows, elapsed_s=time.perf_counter() - began, run=plan.run)
    return rows


def _commit_blocks(
    rows: pa.Table, *, out: str, columns: pa.Schema, stamp: commit.Stamp
) -> pa.Table:
    """Write one file for each name of a device; return the number of rows of each scorer."""
    for name in rows["device_name"].unique().to_pylist():
        of_device = rows.filter(pc.equal(rows["device_name"], name))
        commit.write(of_device, folder=out, schema=columns, stamp=stamp, device_name=name)
    scorers = rows.group_by(["scorer", "device_name"], use_threads=False)
    counted = scorers.aggregate([([], "count_all")])
    return counted.rename_columns({"count_all": "rows"})


def execute(
    todo: Sequence[str],
    *,
    out: str,
    source: ModelSource,
    key: bytes,
    plan: Plan,
    stamp: commit.Stamp,
) -> Iterator[Committed]:
    """Score every row of the Parquet files `todo` of one folder into the folder `out` (all URIs).

    Yields each block when it is committed.
    Raises StoreError if storage does not answer, ModelError if a scorer cannot load its model,
    Stalled and ScorerLost if the cluster is not what it was; what was committed until then stays.
    """
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    _configure(ray.data.DataContext.get_current())
    # Names relative to the folder: of a path with "?" Ray takes the rest for a query.
    todo_fs, todo_path = store.arrow_filesystem(todo[0].rsplit("/", 1)[0])
    names = [uri.rsplit("/", 1)[1] for uri in todo]
    columns = schema.predictions(
        source.image_classes, ranked_boxes=plan.ranked_boxes, masks=plan.masks
    )
    graph = (
        ray.data.read_parquet(names, filesystem=pafs.SubTreeFileSystem(todo_path, todo_fs))
        # A shorter block would leave a rest over from the file that it goes into: a small file.
        .repartition(target_num_rows_per_block=plan.block_rows, strict=True)
        .map_batches(
            _prepare_block,
            fn_kwargs={"source": source, "key": key, "plan": plan},
            batch_format="pyarrow",
            batch_size=plan.block_rows,
            compute=ray.data.TaskPoolStrategy(size=plan.fetchers),
            num_cpus=GPU_FETCH_CPUS if plan.gpus_per_actor else FETCH_CPUS,
            label_selector=_elsewhere(plan),
        )
        .map_batches(
            _ScoreBlock,
            fn_constructor_kwargs={"source": source, "plan": plan},
            batch_format="pyarrow",
            batch_size=plan.block_rows,
            compute=ray.data.ActorPoolStrategy(
                min_size=plan.first_actors,
                max_size=plan.actors,
                max_concurrent_calls_per_actor=GPU_CALLS if plan.gpus_per_actor else 1,
                enable_true_multi_threading=plan.gpus_per_actor > 0,
            ),
            num_cpus=plan.scorer_cpus,
            num_gpus=plan.gpus_per_actor,
        )
        .map_batches(
            _commit_blocks,
            fn_kwargs={"out": out, "columns": columns, "stamp": stamp},
            batch_format="pyarrow",
            batch_size=plan.commit_rows if plan.commit_rows > plan.block_rows else None,
            num_cpus=WRITE_CPUS,
        )
    )
    failing = gpu_failures.failing_gpus(plan.run)
    try:
        for table in graph.iter_batches(batch_size=None, batch_format="pyarrow"):
            runtime.finished_something()
            yield from (Committed(**row) for row in table.to_pylist() if row["rows"])
    except ExecutionTimeoutError:
        raise Stalled from None
    except ray.exceptions.RayError as error:
        # Ray hands on only the text of a worker's error.
        if known := errors.from_wire(str(error)):
            raise known from None
        now_failing = gpu_failures.failing_gpus(plan.run).items()
        if lost := {name for name, count in now_failing if count != failing.get(name)}:
            raise ScorerLost(lost) from None
        raise error from None


def _elsewhere(plan: Plan) -> dict[str, str] | None:
    """Return the label that keeps a task off the nodes with GPUs, None if it may run anywhere."""
    if not plan.avoided_gpu_types:
        return None
    return {runtime.GPU_TYPE: f"!in({','.join(plan.avoided_gpu_types)})"}


def _configure(context: Any) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # cctmn reports its errors in one line
    # the newer reader spends 4 to 6 s on listing one file: nine slices took 8 s, with this one 2 s
    context.use_datasource_v2 = False
    context.enable_progress_bars = False  # ours counts slices
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = STALL_S
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = ACTOR_START_ATTEMPTS
