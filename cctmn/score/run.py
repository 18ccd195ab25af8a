"""One scoring run: plan, score, reconcile; `cctmn score` and jobs/score.py call it.

The same command on the same OUT resumes where it stopped. A run of another identity is refused.

Reads: INPUT, the model, and OUT if it exists.
Writes: OUT/predictions, OUT/studies, OUT/private, OUT/manifest.json.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cctmn import folder, numerics, store, studies, tables
from cctmn.config import ScoreConfig
from cctmn.errors import TRANSIENT, ConfigError, ResumeError, state_of
from cctmn.identity import FITTED_ON
from cctmn.read import inventory
from cctmn.reporter import Reporter, silent
from cctmn.score import begun, reconcile
from cctmn.score.indexing import Inventory
from cctmn.score.job import MANIFEST, ScoreJob, ScoreSummary, manifest
from cctmn.score.prediction_files import PredictionFiles
from cctmn.score.scoring import Scoring
from cctmn.score.todo import Todo


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
    private = store.join(out, "private")
    began = time.monotonic()
    job = replace(job, access=replace(job.access, own=(out,)))
    store.set_s3_access(job.access)
    with folder.only_writer(out, report=report):
        # 1. Open the folder and bring it into a consistent state.
        job = _continued(job, begun.read(out), report)
        key = _open_folder(out, job)
        done = PredictionFiles(store.join(out, "predictions"), stamp=job.stamp(key))
        if removed := done.refresh():
            report(
                f"removed {removed} unfinished or damaged file(s); their slices are scored again"
            )
        if job.retry_errors:
            report(f"withdrew {done.withdraw(None):,} error rows to retry them")
        elif again := done.withdraw(TRANSIENT):
            report(f"{again:,} slices could not be read at the last run; reading them again")
        # 2. List the input, choose the device, record which job writes here, and score the slices
        # without a row.
        known = Inventory(store.join(private, "inventory"), retry_errors=job.retry_errors)
        known.read(finished=done.finished)
        todo = Todo(store.join(private, "todo"), limit=job.limit)
        scoring = Scoring(job, out=out, key=key, done=done, known=known, todo=todo, report=report)
        job = scoring.run(address)
        todo.clear()
        # 3. Reconcile the rows with the inventory, and write the studies and the manifest.
        done.refresh()
        if doubled := done.remove_doubles():
            report(f"removed {doubled:,} duplicate rows of a second writer")
        known.drop_replaced(finished=done.finished)
        counts = reconcile.count(done, inventory=known.folder)
        by_study = studies.write(out, rule=job.source.study_rule)
        classes = Counter(name or "" for name in by_study["pred_class"].to_pylist())
        summary = ScoreSummary(
            counts=counts,
            studies=dict(sorted(classes.items())),
            scored_now=scoring.planned,
            elapsed_s=time.monotonic() - began,
            max_error_rate=job.settings.max_error_rate,
            limited=job.limit is not None,
            scorers=dict(sorted(Counter(scoring.scorers.values()).items())),
        )
        folder.put_json(store.join(out, MANIFEST), manifest(job, summary))
        if fitted_on := job.source.described.get(FITTED_ON):
            folder.put_json(store.join(private, f"{FITTED_ON}.json"), fitted_on)
    return summary


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
    done = PredictionFiles(store.join(out, "predictions"), stamp=None)
    done.refresh()
    plan: dict[str, Any] = {"slices": 0, "done": 0, "pending": 0}
    plan |= {"device": device, "precision": precision}
    kinds: Counter[str] = Counter()
    containers: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for table in inventory.index(
        inputs, key=key or secrets.token_bytes(32), exclude=out, root=root
    ):
        left = reconcile.without(table, done.finished)
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
