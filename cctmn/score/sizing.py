"""How many processes a scoring job asks for, and how large its blocks and files are.

The figures follow rates: those of a device that scores, from `score/rates`, and the time that a
start takes. `make_plan` knows the cluster as it is now, which may grow later.
"""

from __future__ import annotations

from typing import Final

from cctmn import runtime, store
from cctmn.config import ScoreConfig
from cctmn.reporter import run_id
from cctmn.score import pipeline
from cctmn.score.rates import DECODE_MS, GPU_SLICES_PER_S

GPU_BATCH, CPU_BATCH = 16, 4  # slices per forward pass
# Fewest and most slices per block. Decoded pixels of a block of 128 take 32 MiB.
BLOCK_ROWS = (4, 128)
# Fewest and most slices per file of a job on GPUs. Even a GPU of 70 slices/s scores the fewest in
# 30 s, and what a killed run loses is about one file of the whole job, not one per scorer. They are
# multiples of a full block, so that whole blocks fill a file.
GPU_COMMIT_ROWS = (16 * 128, 64 * 128)
# A process on a CPU takes about as long to start as it takes to score this many slices.
SLICES_PER_ACTOR = 16
# The same of a scorer on a GPU that is there: some seconds at a GPU's rate.
SLICES_PER_GPU = 1_000
# The same of a GPU that has to be rented and started first: some 25 s at a GPU's rate.
SLICES_PER_NEW_GPU = 10_000
# While nobody knows how many slices there are, a job may grow to what so many are worth. Ray starts
# further scorers only while blocks wait for them, so a small archive does not get there.
UNKNOWN_SLICES = 1_000_000
# The fewest tasks that fetch for scorers on CPUs, and the number of scorers that one can feed.
FETCHERS = (2, 4)
# Enough blocks per scorer to keep all scorers busy to the end of a small job.
BLOCKS_PER_ACTOR = 8
# A scorer on a GPU launches kernels all the time, so it gets a core that no decoder uses.
GPU_SCORER_CPUS = 1.0
# Cores that decode for one GPU.
DECODE_CPUS_PER_GPU: Final = GPU_SLICES_PER_S * DECODE_MS / 1e3


def make_plan(
    resources: runtime.Resources,
    settings: ScoreConfig,
    *,
    pending: int | None,
    access: store.S3Access | None = None,
) -> pipeline.Plan:
    """Choose the numbers of processes and the sizes of blocks and files for a cluster and a job.

    `pending` is the number of slices to score, as far as it is known: a lower bound, or None.

    The pool of scorers grows up to `actors` while the cluster grows. Scorers on CPUs request less
    than they use, so that Ray cannot tell how many more fit; their number is fixed from the CPUs
    that are present. If GPU nodes start only on request, no GPU is visible yet, and the setting
    `gpus` must be given.
    """
    gpus = settings.gpus if settings.gpus >= 0 else float(resources.gpus >= 1)
    room = int(resources.gpus / gpus) if gpus else runtime.cpu_workers(resources)
    slices = UNKNOWN_SLICES if pending is None else pending
    actors = _actors(settings, gpus=gpus, room=room, slices=slices)
    first_actors = max(1, min(actors, room))
    least, most = BLOCK_ROWS
    workers = settings.actors or max(1, room)
    block_rows = settings.block_rows or min(
        most, max(least, slices // (workers * BLOCKS_PER_ACTOR))
    )
    fewest, fed = FETCHERS
    blocks = -(-slices // block_rows)
    return pipeline.Plan(
        actors=actors,
        first_actors=first_actors,
        # Tasks for scorers on GPUs ask for whole cores, so the cluster limits their number.
        fetchers=None if gpus else min(blocks, max(fewest, -(-actors // fed))),
        gpus_per_actor=gpus,
        batch_size=settings.batch_size or (GPU_BATCH if gpus else CPU_BATCH),
        block_rows=block_rows,
        commit_rows=_commit_rows(settings, gpus=gpus, block_rows=block_rows, actors=first_actors),
        scorer_cpus=_scorer_cpus(resources, gpus=gpus, scorers=first_actors),
        avoided_gpu_types=_avoided(resources, gpus=gpus),
        fetch_threads=settings.fetch_threads,
        ranked_boxes=settings.ranked_boxes,
        masks=settings.masks,
        access=access or store.S3Access(),
        run=run_id(),
    )


def _actors(settings: ScoreConfig, *, gpus: float, room: int, slices: int) -> int:
    """Return the largest number of scorers that the slices are worth."""

    def worth(slices_each: float) -> int:
        return max(1, -(-slices // max(1, round(slices_each))))

    if not gpus or settings.actors:
        return min(settings.actors or max(1, room), worth(SLICES_PER_ACTOR))
    shared = min(1.0, gpus)  # scorers that share a GPU share its rate
    present = min(max(1, room), worth(SLICES_PER_GPU * shared))
    return max(present, worth(SLICES_PER_NEW_GPU * shared))


def _commit_rows(settings: ScoreConfig, *, gpus: float, block_rows: int, actors: int) -> int:
    """Return the number of rows that are gathered for one file.

    A file of a job on CPUs has one block, which takes a core some 30 s.
    """
    if settings.commit_rows or settings.block_rows or not gpus:
        return max(block_rows, settings.commit_rows)
    fewest, most = GPU_COMMIT_ROWS
    return min(most, fewest * actors)


def _scorer_cpus(resources: runtime.Resources, *, gpus: float, scorers: int) -> float:
    """Return the CPUs that a scorer asks for.

    Scorers on GPUs ask for none where they would leave too few for the tasks that feed them.
    """
    if not gpus:
        return pipeline.SCORER_CPUS
    cpus = min(1.0, gpus) * GPU_SCORER_CPUS
    return cpus if scorers * cpus + runtime.SPARE_CPUS <= resources.cpus else 0.0


def _avoided(resources: runtime.Resources, *, gpus: float) -> tuple[str, ...]:
    """Return the types of GPUs whose nodes are to decode nothing, none if their cores are needed.

    The nodes without GPUs must be able to feed all GPUs that are present.
    """
    enough = resources.cpus_elsewhere >= resources.gpus * DECODE_CPUS_PER_GPU + runtime.SPARE_CPUS
    return resources.gpu_types if gpus and resources.gpus and enough else ()
