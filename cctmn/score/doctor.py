"""Checks before a scoring job: the machine, the model, the storage, and a sample of the slices.

`examine` returns plain values, with a verdict and a list of problems first. It decodes a sample
that is spread evenly over the slices seen, scores it where a model is given, and estimates time and
disk of the whole job from that. What it writes below OUT, to try it, it removes. It does not start
Ray.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cctmn import lease, runtime, store, versions
from cctmn.config import ScoreConfig
from cctmn.contract import InputContract
from cctmn.errors import SLICE_CODES, CctmnError, StoreError, state_of
from cctmn.numerics import processor_name
from cctmn.read import inventory
from cctmn.reporter import duration
from cctmn.score import models, scorer, sizing
from cctmn.score.prepare import prepare

SAMPLE: Final = 24  # slices
# Indexing stops at this number of rows, because a check must be quick.
MAX_INDEXED: Final = 5_000
THREADS: Final = 8
BATCH: Final = 4  # slices per forward pass
# AWS refuses a request whose time differs by 15 minutes.
MAX_CLOCK_S: Final = 300.0
# Scoring the sample stops after this time, for large networks on slow machines.
SCORE_S: Final = 30.0


def examine(
    inputs: Sequence[str],
    *,
    model: str | None = None,
    out: str | None = None,
    access: store.S3Access | None = None,
) -> dict[str, Any]:
    """Return the report. Its `problems` is empty if a job can start."""
    access = access or store.S3Access()
    problems: list[str] = []
    report: dict[str, Any] = {"machine": _machine(out), "versions": versions.libraries()}
    store.set_s3_access(replace(access, own=tuple(store.to_uri(p) for p in (out, model) if p)))
    storage: dict[str, Any] = {p: _reach(p, problems) for p in inputs if _is_remote(p)}
    if out is not None:
        storage[out] = _try_to_write(out, problems)
    if storage:
        report["storage"] = storage
    source = None
    if model is not None:
        try:
            source = models.open_source(model)
            report["model"] = _model(model)
        except CctmnError as error:
            problems.append(str(error))
    if inputs:
        try:
            rows, complete = _index(inputs)
            sample, report["input"] = _sample(rows, complete=complete, source=source)
            if source is not None:
                report["job"] = _estimate(sample, source, rows=rows, complete=complete)
        except CctmnError as error:
            problems.append(str(error))
    free = report["machine"].get("out_free_bytes")
    needed = report.get("job", {}).get("disk_bytes", 0)
    if free is not None and needed > free:
        problems.append(
            f"{out}: {_size(needed)} needed, {_size(free)} free; use another OUT or free some space"
        )
    problems = list(dict.fromkeys(problems))
    return {"verdict": _verdict(report, problems), "problems": problems} | report


def _verdict(report: dict[str, Any], problems: list[str]) -> str:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return f"Not ready: {count}; see below."
    if "input" not in report:
        return "Ready: this machine can run cctmn. Name INPUT and -m MODEL to check a job."
    seen, sampled = report["input"]["slices_seen"], report["input"]["sampled"]
    number = f"{seen:,}" if report["input"]["seen_all"] else f"at least {seen:,}"
    scored = f"{report['input']['would_be_scored']} of {sampled} sampled slices can be scored"
    if "job" not in report:
        return f"Ready: {number} slices, {scored}. Name -m MODEL to estimate time and disk."
    job = report["job"]
    return (
        f"Ready: {number} slices, {scored}; scoring {'them' if job['slices_are_all'] else 'these'} "
        f"takes about {job['time']} and {job['disk']} of disk here."
    )


def _machine(out: str | None) -> dict[str, Any]:
    import torch

    gib = 1 << 30
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    machine: dict[str, Any] = {
        "processor": processor_name(),
        "cpu_cores": runtime.usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib, 1),
        "gpus": [f"{gpu.name}, {gpu.total_memory / gib:.0f} GiB" for gpu in gpus],
    }
    if out is not None and not _is_remote(out):
        folder = Path(store.to_path(store.to_uri(out)))
        while not folder.exists():
            folder = folder.parent
        machine["out_free_bytes"] = shutil.disk_usage(folder).free
    return machine


def _is_remote(place: str) -> bool:
    return not store.traits(store.to_uri(place)).file_locks


def _reach(place: str, problems: list[str]) -> str:
    """List and read one object there."""
    try:
        first = next(iter(store.find_objects(store.to_uri(place))), None)
        if first is None:
            return "listing works; no objects"
        store.read_range(first.uri, start=0, length=1)
    except CctmnError as error:
        problems.append(str(error))
        return f"not reachable: {error}"
    return "listing and reading work"


def _try_to_write(out: str, problems: list[str]) -> dict[str, Any] | str:
    """List, write, read and delete below OUT, as a job does with its lock; nothing is left."""
    uri = store.to_uri(out)
    if not _is_remote(out):
        return _try_to_write_locally(Path(store.to_path(uri)), problems)
    scratch = store.join(uri, "private", f"doctor-{secrets.token_hex(4)}")
    try:
        next(iter(store.list_below(uri)), None)
        store.put(scratch, b"doctor")
        version = store.read_version(scratch)
        store.delete(scratch)
        if version is None or version.data != b"doctor":
            raise StoreError("an object that was written cannot be read; check the server", scratch)
        obeys = lease.knows_conditions(scratch)
    except CctmnError as error:
        problems.append(str(error))
        return f"not usable: {error}"
    if abs(version.clock_s) > MAX_CLOCK_S:
        problems.append(f"{out}: its clock and that of this machine differ; set the clock here")
    return {
        "access": "listing, writing, reading and deleting work",
        "conditional_writes": "obeyed" if obeys else "not obeyed; start one job at a time",
        "clock_ahead_s": round(version.clock_s),
    }


def _try_to_write_locally(folder: Path, problems: list[str]) -> str:
    present = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=present) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as error:
        problems.append(f"{folder}: cannot be written ({error.strerror}); check OUT")
        return "not writable"
    return "writing works"


def _model(folder: str) -> dict[str, Any]:
    from cctmn.model import checkpoint

    # Unlike read_card, this also builds the network, so that a card of other weights is found.
    card = checkpoint.load(folder).card
    return {
        "name": card.name,
        "id": card.model_id,
        "kind": card.kind,
        "trained": card.trained,
        "arch": asdict(card.arch),
    }


def _index(inputs: Sequence[str]) -> tuple[pa.Table, bool]:
    """Return the first rows of the inventory, and whether these are all."""
    tables: list[pa.Table] = []
    for table in inventory.index(inputs, key=secrets.token_bytes(32)):
        tables.append(table)
        if sum(map(len, tables)) >= MAX_INDEXED:
            return pa.concat_tables(tables), False
    return pa.concat_tables(tables), True


def spread(count: int, *, sample: int) -> list[int]:
    """Return at most `sample` of the indices 0 to count - 1, evenly spread over all of them."""
    size = min(count, sample)
    return [(2 * i + 1) * count // (2 * size) for i in range(size)]


def _sample(
    rows: pa.Table, *, complete: bool, source: scorer.ModelSource | None
) -> tuple[pa.Table, dict[str, Any]]:
    """Decode the sample; return its prepared rows, and what the report says of it."""
    contract = InputContract() if source is None else InputContract.from_card(source.input)
    sample = rows.take(spread(len(rows), sample=SAMPLE))
    began = time.perf_counter()
    prepared = prepare(sample, contract=contract, key=secrets.token_bytes(32), threads=THREADS)
    elapsed_s = time.perf_counter() - began
    flags: Counter[str] = Counter()
    refused: dict[str, dict[str, dict[str, Any]]] = {"passed_over": {}, "error": {}}
    for row, ready in zip(sample.to_pylist(), prepared.to_pylist(), strict=True):
        flags.update(ready["flags"])
        if ready["error_code"]:
            where = row["uri"] + (f"::{row['member']}" if row["member"] else "")
            entry = refused[state_of(ready["error_code"])].setdefault(
                ready["error_code"],
                {"n": 0, "means": SLICE_CODES[ready["error_code"]], "example": where},
            )
            entry["n"] += 1
    return prepared, {
        "slices_seen": len(rows),
        "seen_all": complete,
        "sampled": len(sample),
        "would_be_scored": sum(1 for code in prepared["error_code"].to_pylist() if not code),
        "seconds_per_slice_read": round(elapsed_s / max(1, len(sample)), 4),
        "flagged": dict(sorted(flags.items())),
        "passed_over": dict(sorted(refused["passed_over"].items())),
        "refused": dict(sorted(refused["error"].items())),
    }


def _estimate(
    prepared: pa.Table, source: scorer.ModelSource, *, rows: pa.Table, complete: bool
) -> dict[str, Any]:
    """Score the sample in this process, and estimate time and disk for all `rows` from it.

    The time leaves out the start of Ray and assumes that storage keeps up with the scorers.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        net = source.load(torch.cuda.is_available())  # as a scorer of the job would
        scored = []
        began, timed_s, timed = time.perf_counter(), 0.0, 0
        for start in range(0, len(prepared), BATCH):
            batch = prepared.slice(start, BATCH)
            before = time.perf_counter()
            predicted = scorer.score(
                batch, scorer=net, source=source, batch_size=BATCH, ranked_boxes=False
            )
            # The first forward pass also allocates, so it is not timed unless it is the only one.
            if start or len(prepared) <= BATCH:
                timed_s, timed = timed_s + time.perf_counter() - before, timed + len(batch)
            scored.append(predicted)
            if time.perf_counter() - began > SCORE_S and timed:
                break
    finally:
        torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    here = runtime.Resources(cpus=runtime.usable_cores() + runtime.SPARE_CPUS, gpus=gpus)
    plan = sizing.make_plan(here, ScoreConfig(), pending=len(rows))
    scorers = min(plan.actors, gpus or runtime.usable_cores())
    seconds = timed_s / max(1, timed)
    total_s = len(rows) * seconds / scorers
    predicted = pa.concat_tables(scored)
    disk = _disk_bytes(predicted, inventory_rows=rows, file_rows=plan.block_rows)
    return {
        "slices": len(rows),
        "slices_are_all": complete,
        "device": "GPU" if gpus else "CPU, one core per scorer",
        "device_name": scorer.device_name(net),
        "precision": source.precision,
        "scorers": scorers,
        "seconds_per_slice_and_scorer": round(seconds, 4),
        "time_s": round(total_s, 1),
        "time": duration(total_s),
        "disk_bytes": disk,
        "disk": _size(disk),
    }


def _disk_bytes(rows: pa.Table, *, inventory_rows: pa.Table, file_rows: int) -> int:
    """Estimate the size of predictions and inventory from these rows as Parquet.

    Each file of predictions has a constant part, which two sizes tell apart from that of a row.
    """
    all_, one = (_parquet_bytes(part) for part in (rows, rows.slice(0, 1)))
    row = (all_ - one) / max(1, len(rows) - 1)
    slices = len(inventory_rows)
    files = -(-slices // file_rows)
    return round(slices * row + files * (one - row)) + _parquet_bytes(inventory_rows)


def _parquet_bytes(table: pa.Table) -> int:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.tell()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
