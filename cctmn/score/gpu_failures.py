"""GPUs that fail again and again are left out of a job.

After an error of CUDA a process cannot use its GPU any more. The scorer ends, and Ray starts it
again with the same blocks, as a rule on the same GPU. The third time it ends for good, and with it
the graph. The driver then holds that GPU, so that no other scorer gets it, and lays out the graph
anew. Ray's key-value store has the number of failures of each GPU.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NoReturn

# One failure may be an accident; a GPU that fails as often as this will do so again.
MOST: Final = 3
# The scorers of a graph that has ended give their GPUs back within this time.
HOLD_S: Final = 60.0
_KEY: Final = "cctmn.gpu_failures."
# Taken for ever by the first of the threads that share a scorer: one failure counts once.
_ENDING: Final = threading.Lock()


def end_scorer(run: str) -> NoReturn:
    """End this process after an error of CUDA; Ray starts it again, but not for ever."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    _ENDING.acquire()
    context, records = ray.get_runtime_context(), _records(run)
    most = 0
    for number in context.get_accelerator_ids()["GPU"]:
        name = f"GPU {number} of {ray.util.get_node_ip_address()}"
        failures = records.get(name, {}).get("failures", 0) + 1
        record = {"failures": failures, "node": context.get_node_id(), "number": number}
        _internal_kv_put(f"{_KEY}{run}.{name}", json.dumps(record), overwrite=True)
        most = max(most, failures)
    if most >= MOST:
        ray.kill(context.current_actor, no_restart=True)
        time.sleep(HOLD_S)  # Ray ends this process before that
    os._exit(1)


def failing_gpus(run: str) -> dict[str, int]:
    """Return the GPUs that have failed MOST times or more in a run, and how often."""
    failures = {name: record["failures"] for name, record in _records(run).items()}
    return {name: count for name, count in failures.items() if count >= MOST}


class HeldGpus:
    """The failing GPUs of a run, which this process holds so that no scorer gets them."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._holders: dict[str, Any] = {}  # by name

    def __len__(self) -> int:
        return len(self._holders)

    def hold(self, names: Iterable[str]) -> None:
        """Hold these GPUs too; one whose node has gone needs no holder."""
        import ray

        records = _records(self._run)
        for name in names:
            with suppress(ray.exceptions.RayError):
                self._holders[name] = _holder(records[name])


def _holder(record: dict[str, Any]) -> Any:
    """Return an actor that has been given this GPU. Ray cannot be asked for a GPU by its number."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(record["node"], soft=False)
    holder = ray.remote(num_cpus=0, num_gpus=1, scheduling_strategy=there)(_Holder)
    others = []
    while True:
        one = holder.remote()
        if ray.get(one.number.remote(), timeout=HOLD_S) == record["number"]:
            return one
        others.append(one)  # holds another GPU until this returns, when Ray ends it


class _Holder:
    """An actor that holds one GPU and does not use it."""

    def number(self) -> str:
        import ray

        numbers: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        return numbers[0]


def _records(run: str) -> dict[str, dict[str, Any]]:
    """Return what is known of each GPU that has failed in a run, by its name."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    keys = (key.decode() for key in _internal_kv_list(f"{_KEY}{run}."))
    return {key.removeprefix(f"{_KEY}{run}."): json.loads(_internal_kv_get(key)) for key in keys}
