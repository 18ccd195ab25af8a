"""One training run, from labelled data to the best model; `cctmn train` calls it.

The same command on the same OUT resumes from the last checkpoint. Other settings or other data are
refused; a larger number of epochs is accepted and continues the run.

Reads: labelled slices, and the model to start from if one is given.
Writes: OUT/model (best epoch), OUT/last, OUT/manifest.json, the record, and OUT/private.
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from cctmn import __version__, errors, folder, runtime, store, versions
from cctmn.config import ClassifierConfig, DetectorConfig
from cctmn.data import set_record, splits
from cctmn.data.set_record import Members
from cctmn.errors import ConfigError
from cctmn.identity import KEY, RunIdentity
from cctmn.model import checkpoint
from cctmn.model.card import read_card
from cctmn.model.checkpoint import LoadedModel
from cctmn.reporter import Reporter, duration, silent
from cctmn.runtime import Resources
from cctmn.train import distributed, initial, loop, record, validation
from cctmn.train.datasets import Data
from cctmn.train.distributed import Spec
from cctmn.train.stages import Samples, TrainStage, stage_of
from cctmn.train.steps import Steps

FORMAT: Final = 1
LOOK_S: Final = 2.0  # between looks at the workers' progress


@dataclass(frozen=True)
class TrainJob:
    """What to train, on what, and where it goes."""

    config: DetectorConfig | ClassifierConfig
    data: Data
    out: str  # path or s3://
    valid: Data | None = None  # without it, some patients of `data` are kept aside
    model: str | None = None  # to start from
    name: str | None = None  # of the trained model; without it, that of the folder OUT

    @property
    def model_name(self) -> str:
        """The name of the trained model in reports."""
        return self.name or store.display(store.to_uri(self.out)).rstrip("/").rpartition("/")[2]

    @property
    def stage(self) -> TrainStage:
        """The stage of the settings."""
        return stage_of(self.config, model=self.model)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run."""

    model: str  # URI of the best epoch's model
    epochs: int
    best_epoch: int
    validation: dict[str, Any]  # what chose the best epoch: see `Card.validation`
    elapsed_s: float


def train(job: TrainJob, *, address: str | None = None, report: Reporter = silent) -> TrainResult:
    """Train to the end of the job's plan, from the last checkpoint if OUT holds one.

    Raises a CctmnError if the user can fix the cause, KeyboardInterrupt when stopped. OUT can be
    resumed after either.
    """
    out = store.to_uri(job.out)
    began = time.monotonic()
    # 1. The model and the data are checked first; only then are ImageNet weights downloaded.
    start = job.stage.start()
    train_set, valid_set = _open_data(job, start=start, out=out, report=report)
    chosen_on = validation.sampled(
        valid_set, count=job.config.validate_slices, seed=job.config.optim.seed
    )
    if len(chosen_on) < len(valid_set):
        report(f"epochs are validated on {len(chosen_on):,} of the {len(valid_set):,} slices")
    start = job.stage.download_weights(start)
    # 2. The initial weights are serialised once: for the identity, and to be written to OUT.
    card_text, weights, saved_card = checkpoint.to_bytes(start.net, card=start.card)
    identity = _identity(job, weights_sha256=saved_card.weights_sha256, sets=(train_set, valid_set))
    # 3. Train, unless OUT holds all the steps already.
    with folder.only_writer(out, report=report):
        run = store.join(out, "private", "run.json")
        folder.check_same(run, identity=identity, name=job.out)
        folder.put_json(run, {KEY: identity.as_json(), "job": asdict(job)})
        steps = Steps(len(train_set), job.config.optim)
        manifest_uri = store.join(out, "manifest.json")
        manifest = json.loads(store.read_optional(manifest_uri) or b"{}")
        if manifest.get("steps", 0) < steps.total:
            checkpoint.write(store.join(out, "initial"), card_text=card_text, weights=weights)
            card = initial.trained_card(
                start.card,
                name=job.model_name,
                activation=job.stage.activation or start.card.activation,
                note=job.config.note,
                provenance=_provenance(job, parts=(train_set, valid_set), chosen_on=chosen_on),
            )
            spec = Spec(job.config, train_set, chosen_on, out, card)
            with runtime.session(address) as resources:
                workers, use_gpu = _workers(job, resources)
                runtime.wait_for_gpus(
                    [1] * workers if use_gpu else [],
                    available=resources,
                    limit_min=job.config.hardware.gpu_wait_min,
                    report=report,
                )
                device = "GPU" if use_gpu else "CPU"
                report(
                    f"{steps.epochs} epochs, {steps.total:,} steps, {workers} {device} worker(s)"
                )
                with _progress_reported(out, report):
                    written = distributed.fit(spec, workers=workers, use_gpu=use_gpu)
            manifest = _finish(job, out=out, written=written, identity=identity)
            manifest |= {"epochs": steps.epochs, "steps": steps.total}
            folder.put_json(manifest_uri, manifest)
        else:
            report(f"all {manifest['epochs']} epochs are done; nothing is left to train")
    return TrainResult(
        model=store.join(out, "model"),
        epochs=manifest["epochs"],
        best_epoch=manifest["best_epoch"],
        validation=read_card(store.join(out, "model")).validation,
        elapsed_s=time.monotonic() - began,
    )


def _open_data(
    job: TrainJob, *, start: LoadedModel, out: str, report: Reporter
) -> tuple[Samples, Samples]:
    """Return the readable training and validation slices; no patient is in both."""
    train_set = job.stage.read(job.data, card=start.card, report=report)
    arch = start.card.arch
    classes = arch.image_classes if job.stage.name == "classifier" else arch.lesion_classes
    if job.valid is not None:
        parts = train_set, job.stage.read(job.valid, card=start.card, report=report)
    elif job.config.valid_fraction:
        before = _identity_in(out).get("data_sha256")
        parts = validation.draw(
            train_set,
            stage=job.stage,
            classes=classes,
            where=job.data.place,
            begun_with=lambda drawn: _data_sha256(drawn) == before,
            report=report,
        )
    else:
        raise ConfigError("no validation slices; give --valid, or valid_fraction above 0")
    splits.check_disjoint(dict(zip(validation.PARTS, parts, strict=True)))
    validation.report_counts(parts, classes=classes, report=report)
    return parts


def _identity_in(out: str) -> Mapping[str, Any]:
    """Return the values of the run that OUT holds; nothing if it is new."""
    held = store.read_optional(store.join(out, "private", "run.json"))
    return RunIdentity.read(json.loads(held or b"{}")).values


def _data_sha256(sets: tuple[Samples, Samples]) -> str:
    names = [[(s.name, getattr(s, "label", None)) for s in samples] for samples in sets]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _identity(job: TrainJob, *, weights_sha256: str, sets: tuple[Samples, Samples]) -> RunIdentity:
    """Return everything that changes the trained weights.

    `weights_sha256` is the hash of the initial weights, `sets` the training and validation slices.
    The number of epochs is left out, so that a finished run can be given more of them. It counts
    if the learning rate depends on it, or if `steps` may end an epoch early.
    """
    settings = asdict(job.config)
    hardware = settings.pop("hardware")
    if settings["optim"]["schedule"] == "constant" and not settings["optim"]["steps"]:
        del settings["optim"]["epochs"]
    settings["micro_batch"] = hardware["micro_batch"]
    # They choose the best epoch. Runs of earlier versions have neither.
    for name, default in (("validate_every", 1), ("validate_slices", 0)):
        if settings[name] == default:
            del settings[name]
    values = {
        "format": FORMAT,
        "stage": job.stage.name,
        "settings": settings,
        "initial_weights_sha256": weights_sha256,
        "data_sha256": _data_sha256(sets),
    }
    return RunIdentity(values)


def _workers(job: TrainJob, resources: Resources) -> tuple[int, bool]:
    hardware, batch = job.config.hardware, job.config.optim.batch_size
    use_gpu = hardware.device == "gpu" or (hardware.device == "auto" and resources.gpus >= 1)
    have = int(resources.gpus) if use_gpu else runtime.cpu_workers(resources)
    if hardware.device == "gpu":  # of a cluster that may start them when they are asked for
        return min(hardware.workers or max(1, have), batch), True
    if hardware.workers > have:
        raise ConfigError(
            f"hardware.workers: {hardware.workers} asked, room for {have}; ask for fewer"
        )
    return min(hardware.workers or have, batch), use_gpu


def _provenance(
    job: TrainJob, *, parts: tuple[Samples, Samples], chosen_on: Samples
) -> dict[str, Any]:
    """Where the weights come from; no path, for the model may be handed on.

    `chosen_on` are the slices on which the best epoch is chosen: all of the validation part, or a
    sample. The loop adds the validation metrics.
    """
    train_set, valid_set = parts
    settings = asdict(job.config)
    ignored = ["backbone", "truncation", "lesions", "init"] if job.model else []
    for name in ("hardware", *ignored):  # the model's own hold, see arch
        settings.pop(name, None)
    if settings.get("init") not in (None, "imagenet", "none"):
        settings["init"] = "file"
    return {
        "trained_by": f"cctmn {__version__}",
        "stage": job.stage.name,
        "settings": settings,
        "seed": job.config.optim.seed,
        "sets": {
            name: set_record.record(
                Members.of([s.patient for s in samples], [s.image for s in samples])
            )
            for name, samples in zip(validation.PARTS, parts, strict=True)
        },
        "slices": len(train_set),
        "patients": validation.num_patients(train_set),
        "validation": {
            "slices": len(chosen_on),
            "patients": validation.num_patients(chosen_on),
            **({"sample_of_slices": len(valid_set)} if len(chosen_on) < len(valid_set) else {}),
        },
    }


def _finish(job: TrainJob, *, out: str, written: str, identity: RunIdentity) -> dict[str, Any]:
    """Copy the last and the best model to where people look for them."""
    for name, here in ((loop.LAST, "last"), (loop.BEST, "model")):
        chosen = checkpoint.load(store.join(written, name))
        checkpoint.save(chosen.net, store.join(out, here), card=chosen.card, half=job.config.half)
    return {
        "format": FORMAT,
        "stage": job.stage.name,
        "best_epoch": chosen.card.provenance["epoch"],
        "validation": chosen.card.validation,
        "fingerprint": identity.fingerprint(),
        KEY: identity.as_json(),
        "versions": versions.libraries(),
    }


@contextmanager
def _progress_reported(out: str, report: Reporter) -> Iterator[None]:
    """Report progress while the block runs: steps as transient lines, epochs as lines to keep."""
    progress, table = (store.join(out, name) for name in (distributed.PROGRESS, record.EPOCHS))
    store.delete(progress)
    stop = threading.Event()

    def rows() -> list[dict[str, str]]:
        return list(csv.DictReader((store.read_optional(table) or b"").decode().split()))

    def look(epochs: int) -> None:
        before, ended, resumed = b"", False, None
        while not ended:
            ended = stop.wait(LOOK_S)
            # Storage may fail for a moment: the next look tries again.
            with suppress(errors.CctmnError, OSError, ValueError):
                text = store.read_optional(progress)
                now = json.loads(text or b"{}")
                if now.get("resumed") not in (None, resumed):
                    resumed = now["resumed"]
                    after = f"next is epoch {resumed + 1} of {now['epochs']}"
                    report(f"resuming from epoch {resumed}; {after}")
                for row in rows()[epochs:]:
                    report(_epoch_line(row))
                    epochs += 1
                if text and text != before and "step" in now:
                    report(_line(now), transient=True)
                    before = text

    thread = threading.Thread(target=look, args=[len(rows())], name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        store.delete(progress)


def _epoch_line(row: dict[str, str]) -> str:
    metrics = "  ".join(
        f"{name.removeprefix('val_')} {float(value):.3f}"
        for name, value in row.items()
        if name.startswith("val_") and value
    )
    validated = f"validation: {metrics}" if metrics else "not validated"
    return f"epoch {row['epoch']}: training loss {float(row['loss']):.3f}; {validated}"


def _line(now: dict[str, Any]) -> str:
    if "phase" in now:
        return f"{now['phase']}: {now['step']:,}/{now['steps']:,}"
    return (
        f"epoch {now['epoch']}  step {now['step']:,}/{now['steps']:,}  loss {now['loss']:.3f}  "
        f"{now['steps_per_s']:.3g} steps/s  eta {duration(now['left_s'])}"
    )
