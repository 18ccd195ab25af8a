"""Look into objects by tasks on the nodes of a cluster, many pages at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa

from cctmn import errors, runtime, store
from cctmn.read import inventory
from cctmn.store import ObjectInfo

# Such a task waits for the storage most of the time. Not 0: then Ray would use the head too.
LOOK_CPUS: Final = 0.25
# Tasks per CPU of the cluster. They must leave places for the tasks that feed the scorers.
TASKS_PER_CPU: Final = 0.5


def tasks(available: runtime.Resources) -> int:
    """Return the number of pages that this cluster looks into at a time."""
    return int(available.cpus * TASKS_PER_CPU)


def on_cluster(*, key: bytes, access: store.S3Access) -> Callable[[Sequence[ObjectInfo]], pa.Table]:
    """Return a function that is `inventory.look`, run as a task of the cluster."""
    import ray

    task = ray.remote(num_cpus=LOOK_CPUS)(_look)

    def look(objects: Sequence[ObjectInfo]) -> pa.Table:
        try:
            return ray.get(task.remote(list(objects), key, access))
        except ray.exceptions.RayError as error:
            # Ray hands on only the text of a worker's error.
            raise errors.from_wire(str(error)) or error from None

    return look


def _look(objects: Sequence[ObjectInfo], key: bytes, access: store.S3Access) -> pa.Table:
    store.set_s3_access(access)
    return inventory.look(objects, key=key)
