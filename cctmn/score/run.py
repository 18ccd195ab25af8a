"""One scoring run: plan, score, reconcile; `cctmn score` and jobs/score.py call it.

The same command on the same OUT resumes where it stopped. A run of another identity is refused.

Reads: INPUT, the model, and OUT if it exists.
Writes: OUT/predictions, OUT/studies, OUT/private, OUT/manifest.json.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from cctmn import folder, numerics, runtime, store, studies, tables
from cctmn.config import ScoreConfig
from cctmn.errors import TRANSIENT, ConfigError, PreflightError, ResumeError, state_of
from cctmn.identity import FITTED_ON, KEY
from cctmn.numerics import CPU, CUDA
from cctmn.read import inventory
from cctmn.reporter import Reporter, run_id, silent
from cctmn.score import begun, meters, pipeline, resume
from cctmn.score.commit import Stamp
from cctmn.score.job import MANIFEST, ScoreJob, ScoreSummary, manifest
from cctmn.score.progress import STARTING, Progress

GPU_BATCH, CPU_BATCH = 16, 4  # slices per forward pass
# Fewest and most slices per commit. A killed run loses at most one commit per scorer.
BLOCK_ROWS = (4, 128)
# A process takes about as long to start as it takes to score this many slices.
SLICES_PER_ACTOR = 16
# Waiting for spot machines may take hours.
NO_PROGRESS_S = 4 * 3600
# The fewest tasks that fetch for scorers on CPUs, and the number of scorers that one can feed.
FETCHERS = (2, 4)
# Enough blocks per scorer to keep all scorers busy to the end of a small job.
BLOCKS_PER_ACTOR = 8


def score(job: ScoreJob, *, address: str | None = None, report: Reporter = silent) -> ScoreSummary:
    """Score every slice of the INPUTs that OUT does not hold yet.

    Raises a CctmnError if the user can fix the cause, KeyboardInterrupt when stopped. OUT can be
    resumed after either.
    """
    if job.settings.masks and not job.source.mask_head:
        raise ConfigError(
            "masks: this model has no mask head; leave masks out or use another model"
        )
    assert job.source.precision == numerics.precision_of(job.settings.precision), job.source
    for note in job.source.described.get("notes") or ():
        report(f"caution: {note}")
    out = store.to_uri(job.out)
    predictions, private = store.join(out, "predictions"), store.join(out, "private")
    known, todo = store.join(private, "inventory"), store.join(private, "todo")
    began = time.monotonic()
    job = replace(job, access=replace(job.access, own=(out,)))
    store.set_s3_access(job.access)
    with folder.only_writer(out, report=report):
        # 1. Open the folder and bring it into a consistent state.
        job = _continued(job, begun.read(out), report)
        key = _open_folder(out, job)
        stamp = _stamp(job, key)
        if removed := resume.remove_damaged(predictions, stamp=stamp):
            report(
                f"removed {removed} unfinished or damaged file(s); their slices are scored again"
            )
        if job.retry_errors:
            report(f"withdrew {resume.withdraw(predictions, None):,} error rows to retry them")
        elif again := resume.withdraw(predictions, TRANSIENT):
            report(f"{again:,} slices could not be read at the last run; reading them again")
        # 2. List the input.
        finished = resume.done(predictions)
        indexed = inventory.index(job.inputs, key=key, exclude=out, root=job.root, report=report)
        if changed := resume.write_inventory(known, _counted(indexed, report), finished=finished):
            report(
                f"{changed:,} slices have changed in storage since they were listed; existing rows "
                "describe the earlier content: use a new OUT to score them again"
            )
        # 3. Choose the device, record which job writes here, and score the slices without a row.
        pending = resume.write_todo(
            todo, indexed=tables.inventory(known), finished=finished, limit=job.limit
        )
        report(f"{len(finished):,} slices done, {pending:,} to score")
        del finished
        scorers: dict[str, str] = {}  # device by id
        if pending:
            report(f"0/{pending:,}  starting Ray", transient=True)
            with runtime.session(address) as available:
                job = _on_cluster(job, available, report)
                _record(job, private)
                stamp = _stamp(job, key)
                if job.settings.gpus > available.gpus:
                    runtime.wait_for_gpus(
                        [job.settings.gpus],
                        available=available,
                        limit_min=job.settings.gpu_wait_min,
                        report=report,
                    )
                scored = functools.partial(
                    _execute, job, out=out, key=key, stamp=stamp, scorers=scorers, report=report
                )
                scored(pending=pending)
                if job.limit is None and (left := _put_back(out, key=key, report=report)):
                    scored(pending=left)
            resume.clear(todo)
        # 4. Reconcile the rows with the inventory, and write the studies and the manifest.
        if doubled := resume.remove_doubles(predictions):
            report(f"removed {doubled:,} duplicate rows of a second writer")
        counts = resume.count(predictions, indexed=tables.inventory(known))
        by_study = studies.write(out, rule=job.source.study_rule)
        classes = Counter(name or "" for name in by_study["pred_class"].to_pylist())
        summary = ScoreSummary(
            counts=counts,
            studies=dict(sorted(classes.items())),
            scored_now=pending,
            elapsed_s=time.monotonic() - began,
            max_error_rate=job.settings.max_error_rate,
            limited=job.limit is not None,
            scorers=dict(sorted(Counter(scorers.values()).items())),
        )
        folder.put_json(store.join(out, MANIFEST), manifest(job, summary))
        if fitted_on := job.source.described.get(FITTED_ON):
            folder.put_json(store.join(private, f"{FITTED_ON}.json"), fitted_on)
    return summary


def _execute(
    job: ScoreJob,
    *,
    out: str,
    key: bytes,
    stamp: Stamp,
    pending: int,
    scorers: dict[str, str],
    report: Reporter,
) -> None:
    """Score the pending slices, with a new plan whenever the pipeline stalls.

    Adds the name of each scorer's device to `scorers`, and reports it when the first is known.
    Raises PreflightError if no slice was scored for NO_PROGRESS_S.
    """
    predictions, todo = store.join(out, "predictions"), store.join(out, "private", "todo")
    idle_s = 0.0
    while pending:
        meters.reached("", run=run_id())
        plan = make_plan(runtime.resources(), job.settings, pending=pending, access=job.access)
        try:
            with Progress(predictions, total=pending, report=report, stage=_stage):
                for block in pipeline.execute(
                    todo, out=predictions, source=job.source, key=key, plan=plan, stamp=stamp
                ):
                    if not scorers:
                        count = plan.num_devices
                        report(f"scoring on {count} x {block.device_name}, {job.source.precision}")
                    scorers[block.scorer] = block.device_name
            return
        except pipeline.Stalled:
            indexed = list(tables.inventory(todo))
        left = resume.write_todo(
            todo, indexed=iter(indexed), finished=resume.done(predictions), limit=None
        )
        idle_s = idle_s + pipeline.STALL_S if left == pending else 0.0
        if idle_s >= NO_PROGRESS_S:
            raise PreflightError(
                f"no scorer could be scheduled for {NO_PROGRESS_S // 3600} hours; free resources "
                "on the cluster and run the same command again to resume"
            )
        report(f"no progress; continuing with the present nodes, {left:,} slices to score")
        pending = left


def _stage() -> str:
    return meters.stage(run_id()) or STARTING


def _put_back(out: str, *, key: bytes, report: Reporter) -> int:
    """Plan the slices anew that storage failed to give, and those of replaced objects.

    Their objects are indexed again. Returns the number of slices to score.
    """
    private = store.join(out, "private")
    predictions, todo = store.join(out, "predictions"), store.join(private, "todo")
    known = store.join(private, "inventory")
    if not (put_back := resume.withdraw(predictions, TRANSIENT)):
        return 0
    report(f"{put_back:,} slices could not be read; reading them once more")
    finished = resume.done(predictions)
    resume.write_todo(todo, indexed=tables.inventory(known), finished=finished, limit=None)
    uris = sorted({uri for table in tables.inventory(todo) for uri in table["uri"].to_pylist()})
    resume.write_inventory(known, inventory.index_again(uris, key=key), finished=finished)
    return resume.write_todo(todo, indexed=tables.inventory(known), finished=finished, limit=None)


def dry_run(
    inputs: Sequence[str],
    *,
    out: str,
    root: str | None = None,
    settings: ScoreConfig | None = None,
    report: Reporter = silent,
) -> dict[str, Any]:
    """Return what a run would do, and write nothing.

    The result counts slices (all, done, pending), slices by kind and by container, and by code
    those that are passed over and those that cannot be scored. It has the device, "" if the
    cluster decides it, and the precision. Raises ResumeError if OUT has others.
    """
    name, out, settings = out, store.to_uri(out), settings or ScoreConfig()
    precision = numerics.precision_of(settings.precision)
    device = begun.device_of(begun.read(out), gpus=settings.gpus, precision=precision, name=name)
    key = store.read_optional(store.join(out, "private", "key"))
    finished = resume.done(store.join(out, "predictions"))
    plan: dict[str, Any] = {"slices": 0, "done": 0, "pending": 0}
    plan |= {"device": device, "precision": precision}
    kinds: Counter[str] = Counter()
    containers: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for table in inventory.index(
        inputs, key=key or secrets.token_bytes(32), exclude=out, root=root
    ):
        left = tables.without(table, finished)
        plan["slices"] += len(table)
        plan["pending"] += len(left)
        kinds.update(table["kind"].to_pylist())
        containers.update(table["container"].to_pylist())
        codes.update(table["error_code"].to_pylist())
        report(f"indexed {plan['slices']:,} slices", transient=True)
    plan["done"] = plan["slices"] - plan["pending"]
    plan["kinds"] = {kind or "none": n for kind, n in sorted(kinds.items())}
    plan["containers"] = {name or "loose": n for name, n in sorted(containers.items())}
    for name, state in (("passed_over", "passed_over"), ("refused", "error")):
        plan[name] = {code: n for code, n in sorted(codes.items()) if state_of(code) == state}
    return plan


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


def _open_folder(out: str, job: ScoreJob) -> bytes:
    """Return the folder's key; a new folder gets a new key.

    Raises ResumeError if the folder holds rows of another run, or predictions without a key.
    """
    predictions = store.join(out, "predictions")
    store.make_folder(predictions)
    has_rows = bool(tables.parquet_files(predictions))
    if has_rows:
        run = store.join(out, "private", "run.json")
        folder.check_same(run, identity=job.identity, name=job.out)
    where = store.join(out, "private", "key")
    key = store.read_optional(where)
    if key is None:
        if has_rows:
            raise ResumeError(
                "has predictions but no private/key; restore private/ or use a new OUT", job.out
            )
        key = secrets.token_bytes(32)
        store.put(where, key, private=True)
    return key


def _continued(job: ScoreJob, held: begun.Begun, report: Reporter) -> ScoreJob:
    """Return the job with the reader and the device of the folder that it resumes.

    Raises ResumeError if the folder has another device or precision.
    """
    device = begun.device_of(
        held, gpus=job.settings.gpus, precision=job.source.precision, name=job.out
    )
    reader = job.reader
    if held.reader is not None and held.reader < job.reader:
        reader = held.reader
        report(
            f"OUT was begun by version {reader} of the reader, now it is {job.reader}: unusual "
            "files may get other flags, codes or pixels in the new rows; a new OUT has all rows "
            "alike"
        )
    if held.is_unrecorded:
        report(
            "OUT was begun by a version that did not record the device: its scores are float32 of "
            "an unknown device; a new OUT has all on one kind of device"
        )
    in_identity = held.has_numerics_in_identity
    return replace(job, reader=reader, device=device, has_numerics_in_identity=in_identity)


def _on_cluster(job: ScoreJob, available: runtime.Resources, report: Reporter) -> ScoreJob:
    """Return the job with its kind of device, which stays the same while the cluster changes."""
    gpus = begun.gpus_per_scorer(
        job.settings, device=job.device, available=available, report=report
    )
    job = replace(job, device=CUDA if gpus else CPU, settings=replace(job.settings, gpus=gpus))
    begun.check_precision(job.source.precision, device=job.device)
    calibration = job.source.described.get("calibration") or {}
    for note in numerics.calibration_note(calibration, [job.numerics]):
        report(f"caution: {note}")
    return job


def _record(job: ScoreJob, private: str) -> None:
    content = {
        KEY: job.identity.as_json(),
        numerics.KEY: job.numerics.as_json(),
        "inputs": list(job.inputs),
        "root": job.root,
        "settings": asdict(job.settings),
        "limit": job.limit,
    }
    folder.put_json(store.join(private, "run.json"), content)


def _stamp(job: ScoreJob, key: bytes) -> Stamp:
    return Stamp.of(
        fingerprint=job.identity.fingerprint(),
        key=key,
        numerics=job.numerics if job.device else None,
    )


def _counted(indexed: Iterator[pa.Table], report: Reporter) -> Iterator[pa.Table]:
    """Yield the tables unchanged, and report the running number of rows."""
    total = 0
    for table in indexed:
        total += len(table)
        report(f"indexed {total:,} slices", transient=True)
        yield table
