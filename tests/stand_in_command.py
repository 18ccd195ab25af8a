"""The command with a stand-in for the network, which needs no torch and so starts quickly.

    CCTMN_TEST_SLEEP_S=0.2 python -m tests.stand_in_command score INPUT -o OUT -m any

For tests that end the processes of a job, or read what they print: there the network plays no
part. Each slice takes as long as the variable says, without using the processor.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from cctmn.cli import cli, main
from cctmn.numerics import precision_of
from cctmn.score import models
from tests.makers import stand_in

# Not that of tests.conftest, whose import would change the environment of the command.
REPO = Path(__file__).resolve().parents[1]


def environment(*, sleep_s: float) -> dict[str, str]:
    """Return the environment of a process that runs this module, and of its Ray workers."""
    return os.environ | {"CCTMN_TEST_SLEEP_S": str(sleep_s), "PYTHONPATH": str(REPO)}


def open_stand_in(folder: str, **options: Any) -> Any:
    precision = precision_of(options.get("precision", "auto"))
    source = stand_in(sleep_s=float(os.environ["CCTMN_TEST_SLEEP_S"]))
    return dataclasses.replace(source, precision=precision)


if __name__ == "__main__":
    models.open_source = open_stand_in
    main(cli)
