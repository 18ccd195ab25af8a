"""The function that a worker of Ray Train runs.

It stands apart because Ray also loads its module in the process that starts the workers. That
process needs no PyTorch, whose import would delay every start by some seconds.
"""

from __future__ import annotations

import pickle
from typing import Any


def work(config: dict[str, Any]) -> None:
    """Train with the pickled `distributed.Spec` under "spec"."""
    from cctmn.train import distributed

    distributed.train_worker(pickle.loads(config["spec"]))  # noqa: S301 - our own driver
