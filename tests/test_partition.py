"""Parts of more rows than fit in memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pyarrow as pa
import pytest

from cctmn import partition
from cctmn.partition import parts_by_key


def rows_of(count: int) -> Iterator[pa.Table]:
    keys = [f"{random.Random(n // 7).getrandbits(64):016x}" for n in range(count)]
    random.Random(1).shuffle(keys)
    for at in range(0, count, 50):
        part = keys[at : at + 50]
        yield pa.table({"key": part, "n": range(at, at + len(part))})


def test_a_part_has_all_rows_of_its_keys_and_the_parts_are_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition, "ROWS_IN_MEMORY", 120)
    parts = [table.to_pylist() for table in parts_by_key(rows_of(1000), "key")]
    keys = [{row["key"] for row in part} for part in parts]
    assert len(parts) > 10
    assert all(max(a) < min(b) for a, b in itertools.pairwise(keys))
    rows = sorted((row["n"], row["key"]) for part in parts for row in part)
    whole = pa.concat_tables(rows_of(1000)).to_pylist()
    assert rows == [(row["n"], row["key"]) for row in whole]


def test_few_rows_are_one_part() -> None:
    [part] = parts_by_key(rows_of(1000), "key")
    assert len(part) == 1000
