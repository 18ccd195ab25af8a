"""Benchmarks that can be repeated: one table of ratios, each of two things measured in turn.

From a checkout, on a machine that does nothing else:
    python jobs/bench.py            all lines
    python jobs/bench.py model      those of one module of jobs/benchmarks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click

from benchmarks import bookkeeping, gpu_budget, job, listing, model, reading, training
from benchmarks.comparison import Comparison, show

# A module's function takes how often to measure and yields its lines.
LINES: dict[str, Callable[[int], Iterator[Comparison]]] = {
    "model": model.lines,
    "training": training.lines,
    "listing": listing.lines,
    "bookkeeping": bookkeeping.lines,
    "job": job.lines,
    "reading": reading.lines,
    "gpu-budget": gpu_budget.lines,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(LINES)))
@click.option(
    "--repeats",
    type=click.IntRange(min=2),
    default=12,
    show_default=True,
    help="How often to measure each of the two things.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON.")
def main(names: tuple[str, ...], repeats: int, as_json: bool) -> None:
    """Measure ratios on this machine: those of NAMES, or all."""
    chosen = names or tuple(LINES)
    show((line for name in chosen for line in LINES[name](repeats)), as_json=as_json)


if __name__ == "__main__":
    main()
