"""How many processes a scoring job asks for, and how large its blocks are."""

from __future__ import annotations

from cctmn import runtime, store
from cctmn.config import ScoreConfig
from cctmn.reporter import run_id
from cctmn.score import pipeline

GPU_BATCH, CPU_BATCH = 16, 4  # slices per forward pass
# Fewest and most slices per commit. A killed run loses at most one commit per scorer.
BLOCK_ROWS = (4, 128)
# A process takes about as long to start as it takes to score this many slices.
SLICES_PER_ACTOR = 16
# The fewest tasks that fetch for scorers on CPUs, and the number of scorers that one can feed.
FETCHERS = (2, 4)
# Enough blocks per scorer to keep all scorers busy to the end of a small job.
BLOCKS_PER_ACTOR = 8


def make_plan(
    resources: runtime.Resources,
    settings: ScoreConfig,
    *,
    pending: int,
    access: store.S3Access | None = None,
) -> pipeline.Plan:
    """Choose the numbers of actors, batch size and block size for a cluster and a job.

    The pool of scorers grows up to `actors` while the cluster grows. On GPUs the cluster is the
    only limit. Scorers on CPUs request less than they use, so that Ray cannot tell how many more
    fit; their number is fixed from the CPUs that are present. If GPU nodes start only on request,
    no GPU is visible yet, and the setting `gpus` must be given.
    """
    gpus = settings.gpus if settings.gpus >= 0 else float(resources.gpus >= 1)
    room = int(resources.gpus / gpus) if gpus else runtime.cpu_workers(resources)
    wanted = settings.actors or max(1, room)
    least, most = BLOCK_ROWS
    block_rows = settings.block_rows or min(
        most, max(least, pending // (wanted * BLOCKS_PER_ACTOR))
    )
    useful = -(-pending // SLICES_PER_ACTOR)
    actors = useful if gpus and not settings.actors else min(wanted, useful)
    fewest, fed = FETCHERS
    blocks = -(-pending // block_rows)
    return pipeline.Plan(
        actors=actors,
        first_actors=max(1, min(actors, room)),
        fetchers=None if gpus else min(blocks, max(fewest, -(-actors // fed))),
        gpus_per_actor=gpus,
        batch_size=settings.batch_size or (GPU_BATCH if gpus else CPU_BATCH),
        block_rows=block_rows,
        fetch_threads=settings.fetch_threads,
        ranked_boxes=settings.ranked_boxes,
        masks=settings.masks,
        access=access or store.S3Access(),
        run=run_id(),
    )
