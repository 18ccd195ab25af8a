"""Check the predictions of a GPU against the CPU's, and measure its rate.

From a checkout:
    python jobs/gpu_check.py
"""

from __future__ import annotations

import json

import click

from benchmarks import gpu
from cctmn.cli import main as run
from cctmn.errors import PreflightError


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--model", default="cctmn:demo", show_default=True, help="Model folder.")
@click.option(
    "--slices",
    type=click.IntRange(min=2),
    default=25,
    show_default=True,
    help="Number of slices whose predictions are compared.",
)
@click.option("--folder", default="", help="Take the slices of this folder and not phantoms.")
@click.option(
    "--largest",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Largest batch whose rate is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def main(device: str, model: str, slices: int, folder: str, largest: int, as_json: bool) -> None:
    """Compare a GPU's predictions with the CPU's, and measure slices per second by batch size."""
    if device == "cuda" and not gpu.available():
        raise PreflightError(
            "PyTorch finds no GPU: this machine; check the driver with nvidia-smi, or try the "
            "command itself with --device cpu"
        )
    results = gpu.check(model, device=device, slices=slices, largest=largest, folder=folder)
    if as_json:
        print(json.dumps(results))
        return
    print(f"{results['device']}, PyTorch {results['torch']}")
    print(f"{'compared with the CPU':40} {'largest':>10} {'median':>10} {'classes':>8}")
    for line in results["parity"]:
        numbers = f"{line['largest']:10.2g} {line['median']:10.2g} {line['same_class']:8}"
        print(f"{line['name']:40} {numbers}")
    print(f"{'batch':>8} {'slices/s':>10} {'peak GiB':>10} {'GPU busy':>10}")
    for line in results["rates"]:
        numbers = f"{line['slices_per_s']:10.1f} {line['peak_gib']:10.2f} {line['busy']:10.0%}"
        print(f"{line['batch']:8} {numbers}")


if __name__ == "__main__":
    run(lambda: main(prog_name="jobs/gpu_check.py"))
