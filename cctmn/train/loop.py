"""The training loop of both stages: steps, validation and a checkpoint per epoch, without Ray.

It returns one row of metrics per epoch and the losses of every step. Everything random follows from
the seed (see `steps`), so a resumed run ends where an uninterrupted run ends.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cctmn.config import Hardware, Optim
from cctmn.errors import ModelError
from cctmn.model import checkpoint, ranking
from cctmn.model.card import Card
from cctmn.train.loading import Loader
from cctmn.train.steps import MicroBatch, Steps
from cctmn.train.tasks import Task

# A checkpoint: two model folders like any other, and what is needed to go on
LAST, BEST, STATE, STATE_DIGEST = "last", "best", "state.pt", "state.sha256"
PROGRESS_S: Final = 2.0


@dataclass(frozen=True)
class World:
    """The place of a worker among all."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class History:
    """What a run has seen: a row per epoch, the losses of each step and their names."""

    rows: list[dict[str, float]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


class Hooks(Protocol):
    """The services that the loop needs from its caller."""

    def restore(self) -> Iterable[Path]:
        """The folders of the checkpoints that are kept, the last one first."""

    def report(self, history: History, written: tempfile.TemporaryDirectory[str] | None) -> None:
        """Keep the metrics and the checkpoint; every worker calls it, the first with a folder."""

    def progress(self, **now: float | str) -> None:
        """Show where the run is; called on the first worker alone."""


def run(
    task: Task,
    *,
    card: Card,
    optim: Optim,
    hardware: Hardware,
    world: World,
    hooks: Hooks,
    validate_every: int = 1,
) -> History:
    """Train to the end of the plan from the last checkpoint.

    Every so many epochs are validated, and the last one is. Only these can be the best epoch, and
    the rows of the others have no validation metrics. Raises ModelError, on every worker, if a loss
    is no longer finite.
    """
    steps = Steps(task.count, optim, size=world.size, micro=_micro(hardware, optim, world))
    here = _Run(task, steps, hardware, world, hooks)
    here.restore()
    history = here.history
    if 0 < len(history.rows) < steps.epochs and world.rank == 0:
        hooks.progress(resumed=len(history.rows), epochs=steps.epochs)
    for epoch in range(len(history.rows), steps.epochs):
        began = time.monotonic()
        is_last = epoch + 1 == steps.epochs
        is_validated = is_last or (epoch + 1) % validate_every == 0
        try:
            losses = here.epoch(epoch)
            trained_s = time.monotonic() - began
            ranking.check_finite(*losses.values())
            here.share_statistics()
            metrics = here.validate() if is_validated else {}
        except ModelError:  # also of the nets themselves, which look at what they rank
            raise ModelError(
                f"the loss is no longer finite in epoch {epoch + 1}; lower optim.lr or set "
                "optim.clip_norm"
            ) from None
        done = len(losses["loss"])
        row = {
            "epoch": epoch + 1,
            "steps": done,
            "loss": float(losses["loss"].mean()),
            **{f"val_{name}": value for name, value in metrics.items()},
            "steps_per_s": done / trained_s,
            "train_s": trained_s,
            "valid_s": time.monotonic() - began - trained_s,
            "valid_slices": task.valid_count if is_validated else 0,
        }
        history.rows.append(row)
        for name, values in losses.items():
            history.losses.setdefault(name, []).extend(values.tolist())
        here.keep_if_best()
        if here.is_time(last=is_last):
            hooks.report(history, here.write(card) if world.rank == 0 else None)
    return history


class _Run:
    """The moving parts of a run on this worker."""

    def __init__(
        self, task: Task, steps: Steps, hardware: Hardware, world: World, hooks: Hooks
    ) -> None:
        self.task, self.steps, self.hardware = task, steps, hardware
        self.world, self.hooks = world, hooks
        task.net.to(world.device).to(memory_format=torch.channels_last)
        self.trained = [p for p in task.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.trained,
            lr=steps.optim.lr,
            weight_decay=steps.optim.weight_decay,
            fused=True,  # one pass over the weights, where the others make ten
        )
        self.module = _wrapped(task.module, world)
        self.loader = Loader(task, processes=hardware.loaders, device=world.device)
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.written = time.monotonic()

    def restore(self) -> None:
        """Resume from the last checkpoint, or from the one before if that is damaged."""
        damaged = None
        for folder in self.hooks.restore():
            try:
                self._read(folder)
                break
            except ModelError as error:
                damaged = error
        else:
            if damaged:
                raise ModelError("no checkpoint can be read; use a new OUT", names=str(damaged))
        self.clock = _Clock(self.steps, done=len(self.history.losses.get("loss", ())))

    def _read(self, folder: Path) -> None:
        """Read a checkpoint. Raises ModelError if a file of it is missing or damaged."""
        device = str(self.world.device)
        last = checkpoint.load(folder / LAST, device=device).net
        best = checkpoint.load(folder / BEST, device=device).net
        digest, path = folder / STATE_DIGEST, folder / STATE
        if digest.exists() and digest.read_text() != _digest(path):  # older ones have none
            raise ModelError("does not match its hash; use the checkpoint before it", path)
        state = torch.load(path, map_location=device, weights_only=True)
        self.task.net.load_state_dict(last.state_dict())
        self.best = best.state_dict()
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])

    def keep_if_best(self) -> None:
        """Remember the weights of the best epoch so far."""
        if self.best_row() is self.history.rows[-1]:
            weights = self.task.net.state_dict()
            self.best = {name: value.detach().clone() for name, value in weights.items()}

    def best_row(self) -> dict[str, float]:
        """Return the row of the best epoch so far: of equal metrics that of the lower loss.

        Of equal losses too it is the earlier one. Rows of earlier versions have no validation loss;
        of equal ones among them the last is the best, because its weights were kept. Before the
        first validation the last epoch stands in for the best.
        """
        name = f"val_{self.task.best_metric}"

        def rank(row: dict[str, float]) -> tuple[float, float, float]:
            metric, loss = row[name], row.get("val_loss", math.inf)
            return (
                -math.inf if math.isnan(metric) else metric,
                -math.inf if math.isnan(loss) else -loss,
                -row["epoch"] if "val_loss" in row else row["epoch"],
            )

        validated = [row for row in self.history.rows if name in row]
        return max(validated, key=rank) if validated else self.history.rows[-1]

    def is_time(self, *, last: bool) -> bool:
        """Whether to write a checkpoint now; the first worker's clock decides for all.

        Ray needs a second for each, and an epoch of module S alone is done in less than that.
        """
        now = time.monotonic()
        due = torch.tensor(float(last or now - self.written >= self.hardware.checkpoint_s))
        if self.world.size > 1:
            due = due.to(self.world.device)
            dist.broadcast(due, src=0)
        if due:
            self.written = now
        return bool(due)

    def write(self, card: Card) -> tempfile.TemporaryDirectory[str]:
        """A checkpoint: the last model, the best one, and what is needed to go on."""
        kept = tempfile.TemporaryDirectory()
        folder, net = Path(kept.name), self.task.net
        last_card = _with(card, self.history.rows[-1], chosen_by=self.task.best_metric)
        checkpoint.save(net, folder / LAST, card=last_card)
        best = checkpoint.filled(card.arch, self.best, where="best epoch")
        best_card = _with(card, self.best_row(), chosen_by=self.task.best_metric)
        checkpoint.save(best, folder / BEST, card=best_card)
        state = {"optimizer": self.optimizer.state_dict(), "history": vars(self.history)}
        torch.save(state, folder / STATE)
        (folder / STATE_DIGEST).write_text(_digest(folder / STATE))
        return kept

    def epoch(self, epoch: int) -> dict[str, Tensor]:
        """One pass over the slices; the losses of its steps, over all workers."""
        self.task.train()
        work = self.steps.epoch(epoch, rank=self.world.rank)
        table: list[Tensor] = []
        names: list[str] = []
        now = torch.zeros(1)
        for batch, micro in self.loader.epoch(work):
            torch.manual_seed(self.steps.seed(epoch, micro.indices))
            losses = self._backward(batch, micro)
            names = list(losses)
            now = now + torch.stack(list(losses.values())).detach().cpu() * micro.weight
            if micro.is_last:
                self._step(epoch * self.steps.per_epoch + len(table))
                table.append(now)
                if self.world.rank == 0 and (seen := self.clock.look()) is not None:
                    self.hooks.progress(epoch=epoch + 1, loss=float(now[0]), **seen)
                now = torch.zeros(1)
        return dict(zip(names, self._over_all(torch.stack(table)).T, strict=True))

    def _backward(self, batch: list[Any], micro: MicroBatch) -> dict[str, Tensor]:
        device = self.world.device
        with _synced(self.module, micro.is_last):
            with _autocast(self.hardware.precision, device):
                losses = self.task.losses(self.module, batch, device=device)
            losses = {"loss": torch.stack(list(losses.values())).sum(), **losses}
            (losses["loss"] * micro.weight).backward()  # type: ignore[no-untyped-call]
        return losses

    def _step(self, step: int) -> None:
        if self.steps.optim.clip_norm:
            nn.utils.clip_grad_norm_(self.trained, self.steps.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.steps.lr(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _over_all(self, table: Tensor) -> Tensor:
        """The workers' mean; each weighed its slices for that."""
        if self.world.size > 1:
            table = table.to(self.world.device)
            dist.all_reduce(table)
        return table.cpu() / self.world.size

    def share_statistics(self) -> None:
        """Give every worker the mean of batch norm's running statistics.

        Each has seen its own slices alone.
        """
        if self.world.size > 1:
            for buffer in self.task.net.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.world.size

    def validate(self) -> dict[str, float]:
        """Return the mean loss and the metrics of all validation slices.

        The workers divide the slices among them.
        """
        size, count = self.world.size, self.task.valid_count
        self.task.net.eval()
        indices = range(self.world.rank, count, size)
        own = dict(zip(indices, self.task.validate(indices), strict=True))
        parts: list[Any] = [own]
        if size > 1:
            parts = [None] * size
            dist.all_gather_object(parts, own)
        merged = {i: output for part in parts for i, output in part.items()}
        validated = [merged[i] for i in range(count)]
        loss = math.fsum(one.loss for one in validated) / count
        return {"loss": loss, **self.task.compute_metrics([one.output for one in validated])}


class _Clock:
    """Measures the progress of a run, at most every PROGRESS_S seconds."""

    def __init__(self, steps: Steps, *, done: int) -> None:
        self._total, self._done, self._start = steps.total, done, done
        self._began = self._last = time.monotonic()

    def look(self) -> dict[str, float] | None:
        """Count a step; return the progress if the last report is old, else None."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < PROGRESS_S:
            return None
        self._last = now
        rate = (self._done - self._start) / (now - self._began)
        left_s = (self._total - self._done) / rate
        return {"step": self._done, "steps": self._total, "steps_per_s": rate, "left_s": left_s}


def _wrapped(module: nn.Module, world: World) -> nn.Module:
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames it, 2.8 lacks the new
        # Buffers are averaged after the epoch; broadcasting would keep the first worker's alone.
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)


def _synced(module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients with the other workers in a step's last backward pass only."""
    if is_last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bfloat16" or (precision == "auto" and has_it):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _micro(hardware: Hardware, optim: Optim, world: World) -> int:
    if hardware.micro_batch:
        return hardware.micro_batch
    # A batch is not faster on a CPU, and slices processed singly make the result independent of
    # the number of workers.
    return 1 if world.device.type == "cpu" else math.ceil(optim.batch_size / world.size)


def _with(card: Card, row: dict[str, float], *, chosen_by: str) -> Card:
    """Return the card with the validation metrics of an epoch; JSON has no nan, so it is null."""
    values = {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")}
    metrics = {k: round(v, 4) if math.isfinite(v) else None for k, v in values.items()}
    part = {**card.provenance.get("validation", {}), "chosen_by": chosen_by, "metrics": metrics}
    epoch = {"epoch": int(row["epoch"]), "validation": part}
    return replace(card, provenance={**card.provenance, **epoch})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
