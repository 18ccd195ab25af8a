"""Mutate files of every kind for a while and check that each gives rows, quickly and in few bytes.

    python -m tests.fuzz --minutes 20 --seed 1

An input that fails is kept in build/fuzz. tests/read/test_boundary.py does the same for a moment.
"""

from __future__ import annotations

import io
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import click
import torch

from cctmn.errors import ModelError
from cctmn.model import unpickle
from tests.read.test_boundary import SEEDS, mutated, scored

BATCH = 25
MAX_S = 60.0  # for a batch
MAX_KIB = 2 << 20


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model_weights": {"a": torch.ones(3, 4)}, "epoch": 1}, buffer)
    return buffer.getvalue()


def check_slices(files: dict[str, bytes], folder: Path) -> Counter[str]:
    """Score the files; count the codes. Raises AssertionError where a file has no row."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    began = time.monotonic()
    rows = scored(folder)
    assert time.monotonic() - began < MAX_S, "slow"
    assert {row["uri"].rsplit("/", 1)[1] for row in rows} == set(files), "a file has no row"
    return Counter(row["error_code"] or "ok" for row in rows)


def check_checkpoints(files: dict[str, bytes], folder: Path) -> Counter[str]:
    """Read the files as checkpoints; each is read or refused with a ModelError."""
    outcomes: Counter[str] = Counter()
    for name, data in files.items():
        (folder / name).write_bytes(data)
        try:
            unpickle.read(folder / name)
            outcomes["read"] += 1
        except ModelError:
            outcomes["refused"] += 1
    return outcomes


@click.command()
@click.option("--minutes", default=1.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(minutes: float, seed: int) -> None:
    """Fuzz decoding, archives, the index and the importer."""
    rng = random.Random(seed)
    kept = Path("build/fuzz")
    seeds = SEEDS | {"pth": checkpoint()}
    tried: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    failures = 0
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        kind = rng.choice(sorted(seeds))
        files = {f"{n:02d}": mutated(seeds[kind], rng) for n in range(BATCH)}
        check = check_checkpoints if kind == "pth" else check_slices
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes.update(check(files, Path(folder)))
            except Exception:  # noqa: BLE001 - what must not happen, whatever it is
                failures += 1
                shutil.copytree(folder, kept / f"{seed}-{kind}-{failures}", dirs_exist_ok=True)
                traceback.print_exc()
        tried[kind] += BATCH
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    click.echo(f"tried {dict(sorted(tried.items()))}")
    click.echo(f"outcomes {dict(outcomes.most_common())}")
    click.echo(f"failures {failures}, peak memory {peak_kib >> 10} MiB")
    raise SystemExit(bool(failures) or peak_kib > MAX_KIB)


if __name__ == "__main__":
    main()
