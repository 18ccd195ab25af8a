"""The pace of a scoring job, from the times at which its files were written."""

from __future__ import annotations

from pathlib import Path


def seconds_per_slice(predictions: Path, *, workers: int, warm_up: float = 0.0) -> float:
    """Seconds per slice between the first commits of all workers and the last commits of them.

    Neither the start-up nor the end, where one worker waits for another, is a part of that, nor is
    `warm_up`, a fraction of the files at the beginning.
    """
    import pyarrow.parquet as pq

    files = sorted(predictions.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    first = max(workers, round(warm_up * len(files)))
    counted = files[first : len(files) - workers + 1]
    assert len(counted) > 1, "too few commits for a pace"
    times = [path.stat().st_mtime for path in (files[first - 1], counted[-1])]
    rows = sum(int(pq.read_metadata(path).num_rows) for path in counted)
    return (times[1] - times[0]) / rows
