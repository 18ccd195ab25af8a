"""A look before the job: versions, devices, model, INPUT, and what a sample of slices would give.

In: INPUTs and a model, both optional. Out: a report of plain values, each problem as one line in
`problems`. Nothing is written, no Ray is started.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from cctmn import versions
from cctmn.errors import SLICE_CODES, CctmnError
from cctmn.read import inventory
from cctmn.read.intensity import InputContract
from cctmn.score.prepare import prepare

SAMPLE = 24  # slices, spread over the first MAX_INDEXED
MAX_INDEXED = 5_000  # rows: a look, not an index
THREADS = 8


def examine(inputs: Sequence[str], *, model: str | None) -> dict[str, Any]:
    """The report; `problems` is empty if a job can start."""
    report: dict[str, Any] = {"versions": versions.libraries(), "devices": _devices()}
    problems: list[str] = []
    contract = InputContract()
    if model is not None:
        from cctmn.model import checkpoint

        try:
            card = checkpoint.load(model).card
            report["model"] = {
                "name": card.name,
                "id": card.model_id,
                "kind": card.kind,
                "trained": card.trained,
                "arch": asdict(card.arch),
            }
            contract = InputContract.from_card(dict(card.input))
        except CctmnError as error:
            problems.append(str(error))
    if inputs:
        try:
            report["input"] = _sample(inputs, contract)
        except CctmnError as error:
            problems.append(str(error))
    report["problems"] = problems
    return report


def _devices() -> list[str]:
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return found


def _sample(inputs: Sequence[str], contract: InputContract) -> dict[str, Any]:
    key = secrets.token_bytes(32)
    tables: list[pa.Table] = []
    complete = True
    for table in inventory.index(inputs, key=key):
        tables.append(table)
        if sum(map(len, tables)) >= MAX_INDEXED:
            complete = False
            break
    rows = pa.concat_tables(tables)
    step = max(1, len(rows) // SAMPLE)
    sample = rows.take(list(range(0, len(rows), step))[:SAMPLE])
    flags: Counter[str] = Counter()
    refused: dict[str, dict[str, Any]] = {}
    prepared = prepare(sample, contract=contract, key=key, threads=THREADS)
    for row, ready in zip(sample.to_pylist(), prepared.to_pylist(), strict=True):
        flags.update(ready["flags"])
        if ready["error_code"]:
            where = row["uri"] + (f"::{row['member']}" if row["member"] else "")
            entry = refused.setdefault(
                ready["error_code"],
                {"n": 0, "means": SLICE_CODES[ready["error_code"]], "example": where},
            )
            entry["n"] += 1
    return {
        "slices_seen": len(rows),
        "seen_all": complete,
        "sampled": len(sample),
        "would_be_scored": sum(1 for code in prepared["error_code"].to_pylist() if not code),
        "flagged": dict(sorted(flags.items())),
        "refused": dict(sorted(refused.items())),
    }
