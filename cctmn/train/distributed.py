"""Training on Ray Train: data-parallel workers, and checkpoints that outlive them.

Every worker gets a `Spec`. Checkpoints (the best and the last model) and the record go below OUT. A
worker that dies is replaced, and all continue from the last checkpoint; so does the same command
after a kill.
"""

from __future__ import annotations

import json
import logging
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from cctmn import errors, store
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.contract import InputContract
from cctmn.errors import CctmnError, StoreError
from cctmn.model import checkpoint
from cctmn.model.card import Card
from cctmn.model.memory import keep_freed_memory
from cctmn.runtime import usable_cores
from cctmn.train import features, loop, record, worker
from cctmn.train.loop import History, World
from cctmn.train.stages import Samples, stage_of
from cctmn.train.tasks import Task

CHECKPOINTS: Final = "checkpoints"  # Ray's folder below OUT
KEPT: Final = 2  # should the newer one be damaged
PROGRESS: Final = "progress.json"
FAILED: Final = "failed.json"


@dataclass(frozen=True)
class Spec:
    """What is trained, on what, where to; the initial model lies in OUT/initial."""

    config: DetectorConfig | ClassifierConfig
    slices: Samples
    valid: Samples  # on which the best epoch is chosen
    out: str  # URI
    card: Card  # of the trained model


def fit(spec: Spec, *, workers: int, use_gpu: bool) -> str:
    """Train on the Ray that is running; returns the URI of the last checkpoint.

    Raises the CctmnError that a worker raised.
    """
    import ray.train
    import ray.train.torch

    # Ray logs the errors that it raises; cctmn reports them in one line instead.
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    filesystem, path = store.arrow_filesystem(spec.out)
    store.delete(store.join(spec.out, FAILED))
    trainer = ray.train.torch.TorchTrainer(
        worker.work,
        train_loop_config={"spec": pickle.dumps(spec)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            # GPUs of one node exchange gradients fastest; workers on CPUs want cores of their own
            placement_strategy="PACK" if use_gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=spec.config.hardware.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT),
        ),
    )
    with _interruptible():
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            if (failed := store.read_optional(store.join(spec.out, FAILED))) is None:
                raise
            raise errors.from_wire(failed.decode()) or error from None
    return store.join(spec.out, CHECKPOINTS, Path(result.checkpoint.path).name)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C in `fit` ends the process with 0, as if all were done; here it stays an interrupt."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def train_worker(spec: Spec) -> None:
    """Run the training loop on one worker.

    Ray would retry a user error like a lost machine. Therefore the worker writes the error to OUT,
    and the next attempt stops as soon as it reads it.
    """
    import ray.train
    import ray.train.torch

    failed = store.join(spec.out, FAILED)
    if (before := store.read_optional(failed)) is not None:
        raise errors.from_wire(before.decode()) or AssertionError(before)
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = World(context.get_world_rank(), context.get_world_size(), device)
    threads = spec.config.hardware.threads or max(1, usable_cores() // world.size)
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        hooks = _Hooks(spec.out)
        task = _task(spec, world=world, hooks=hooks)
        loop.run(
            task,
            card=spec.card,
            optim=spec.config.optim,
            hardware=spec.config.hardware,
            world=world,
            hooks=hooks,
            validate_every=spec.config.validate_every,
        )
    except CctmnError as error:
        if not isinstance(error, StoreError):  # storage may be back at the next attempt
            store.put(failed, errors.to_wire(error).encode())
        raise


def _task(spec: Spec, *, world: World, hooks: _Hooks) -> Task:
    """Build the stage's task; the ranked boxes are stored below OUT/features if they are cached."""
    net = checkpoint.load(store.join(spec.out, "initial")).net
    contract = InputContract.from_card(spec.card.input)
    return stage_of(spec.config).task(
        net,
        spec.slices,
        spec.valid,
        contract=contract,
        features=lambda classifier, part, name: features.ranked_features(
            classifier,
            part,
            contract=contract,
            folder=store.join(spec.out, "features", name),
            world=world,
            report_done=lambda done: hooks.progress(
                phase=f"ranked boxes, {name}", step=done, steps=len(part)
            ),
        ),
    )


@dataclass
class _Hooks:
    """Implements the hooks of the loop with Ray Train and the folder OUT."""

    out: str
    _kept: list[Any] = field(default_factory=list)
    _resumed: dict[str, float | str] = field(default_factory=dict)

    def restore(self) -> Iterator[Path]:
        """Yield local copies of the checkpoints that are kept, the last one first."""
        import pyarrow.fs as pafs
        import ray.train

        last = ray.train.get_checkpoint()
        if last is None:
            return
        parent, _, name = last.path.rstrip("/").rpartition("/")
        present = last.filesystem.get_file_info(pafs.FileSelector(parent))
        older = sorted(
            info.base_name
            for info in present
            if info.type == pafs.FileType.Directory
            and info.base_name.startswith("checkpoint_")
            and info.base_name < name
        )
        for kept in [name, *reversed(older)]:
            folder = tempfile.TemporaryDirectory()
            self._kept.append(folder)  # until the worker ends
            checkpoint = ray.train.Checkpoint(f"{parent}/{kept}", filesystem=last.filesystem)
            yield Path(checkpoint.to_directory(folder.name))

    def report(self, history: History, written: tempfile.TemporaryDirectory[str] | None) -> None:
        """Write the record, and hand the checkpoint to Ray, who puts it into OUT."""
        import ray.train

        row = history.rows[-1]
        if written is None:
            ray.train.report(row)
            return
        record.write(history, self.out)
        with written as folder:
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def progress(self, **now: float | str) -> None:
        """Write where the run is; the command that started it reads that.

        The epoch that was resumed from stays in the file, because the command looks now and then.
        """
        import ray.train

        if "resumed" in now:
            self._resumed = {"resumed": now["resumed"], "epochs": now["epochs"]}
        if ray.train.get_context().get_world_rank() == 0:
            text = json.dumps({**self._resumed, **now})
            store.put(store.join(self.out, PROGRESS), text.encode())
