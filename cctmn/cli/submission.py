"""What a submission runs, and checks of its arguments before the submission is spent.

A job that starts on a cluster and then finds no INPUT has cost minutes, and on some clusters the
start of nodes. This machine may see less than the nodes do; what it cannot check, it says.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from cctmn import config, store
from cctmn import folder as output_folder
from cctmn.cli.score import score_settings
from cctmn.cli.train import train_settings
from cctmn.errors import (
    CctmnError,
    ConfigError,
    InputError,
    ModelError,
    ObjectError,
    ResumeError,
    StoreError,
)

# Jobs by name -> the words of the command. An address that the caller gives comes later and wins.
JOBS: Final[Mapping[str, tuple[str, ...]]] = {
    "score": ("score", "--address", "auto"),
    "train-detector": ("train", "detector", "--address", "auto"),
    "train-classifier": ("train", "classifier", "--address", "auto"),
    "evaluate": ("evaluate",),
}
# Parameters of these commands that name something to read.
_READ: Final = frozenset(
    {
        *("inputs", "more_inputs", "root", "config_file", "data", "split", "valid", "valid_split"),
        *("scored", "against", "labels", "training", "masks", "mask_split", "model"),
    }
)
# With one of these the job may read another storage than this machine.
_STORAGE: Final = ("AWS_ENDPOINT", "AWS_PROFILE", "AWS_CONFIG_FILE")
_SHIPPED: Final = "cctmn:"  # a model that comes with the package
MODULE: Final = "cctmn.cli"  # `python -m` runs the command line

Write = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """The job that the command line asks for."""

    name: str  # a key of JOBS, or "" for another script
    script: str | None  # a path, or None for a job of JOBS by its name
    words: Sequence[str]  # arguments of the script, or of the command `cctmn`
    params: Mapping[str, Any]  # values by parameter of the command
    labels: Mapping[str, str]  # the parameter as the user writes it

    @property
    def out(self) -> str | None:
        """The output folder, or None if there is none."""
        return _text(self.params.get("out"))


def read(script: str, args: Sequence[str], *, group: click.Command) -> Submission:
    """Parse the arguments of a job by the command in `group` that it runs.

    A script of jobs/ is named after its command (train_detector.py: `train detector`). Of another
    script, only -o/--out is known. Raises ConfigError if a job of JOBS has a wrong argument.
    """
    name = script.replace("_", "-")
    if name in JOBS:
        command = _command(name, group)
        try:
            params = command.make_context(f"cctmn submit {script}", list(args)).params
        except click.UsageError as error:
            text, words = error.format_message().rstrip("."), " ".join(_words(name))
            raise ConfigError(f"{script}: {text}; see `cctmn {words} --help`") from None
        return Submission(name, None, (*JOBS[name], *args), params, _labels(command))
    name = Path(script).stem.replace("_", "-")
    command = _command(name, group)
    params = _values(command, args)
    return Submission(name if name in JOBS else "", script, args, params, _labels(command))


def _words(name: str) -> list[str]:
    """Return the words of a command whose name a script or job has."""
    return name.split("-")


def _command(name: str, group: click.Command) -> click.Command:
    """Return the command of this name, or one that knows no option but OUT."""
    command = group
    for word in _words(name):
        inner = command.commands.get(word) if isinstance(command, click.Group) else None
        if inner is None:
            return _OUT_ONLY
        command = inner
    return command


def _values(command: click.Command, args: Sequence[str]) -> dict[str, Any]:
    """Return the values of the parameters, as far as the arguments can be understood."""
    with command.make_context(command.name, list(args), resilient_parsing=True) as context:
        return dict(context.params)


def _labels(command: click.Command) -> dict[str, str]:
    """Return each parameter as a user writes it: INPUT, --data."""
    return {
        str(param.name): max(param.opts, key=len)
        if isinstance(param, click.Option)
        else str(param.metavar or param.name).strip("[].")
        for param in command.params
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_OUT_ONLY: Final = click.Command(
    "script",
    params=[
        click.Option(["-o", "--out"]),
        click.Option(["-q", "--quiet"], is_flag=True),
        click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED),
    ],
    context_settings={"ignore_unknown_options": True},
)


def out_of(entrypoint: str, *, group: click.Command) -> str | None:
    """Return the OUT in the command line of a job that the cluster lists, None without one.

    It is `python -m cctmn.cli COMMAND ...`, `cctmn COMMAND ...` or `python SCRIPT ...`.
    """
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        return None
    for number, word in enumerate(words):
        rest = words[number + 1 :]
        if word.endswith(".py"):
            return read(word, rest, group=group).out
        if word == MODULE or Path(word).name == "cctmn":
            command = group
            while isinstance(command, click.Group) and rest:
                command = command.commands.get(rest.pop(0), _OUT_ONLY)
            return _text(_values(command, rest).get("out"))
    return None


def check(job: Submission, *, env: Mapping[str, str], folder: Path | None, write: Write) -> None:
    """Refuse a job that cannot succeed; `write` gets a line on what could not be checked.

    `folder` is what is uploaded, None if it is not known here. Raises a CctmnError.
    """
    if not job.name:
        return
    settings = _settings(job, folder)
    storage = next((name for name in env if name.startswith(_STORAGE)), "")
    if job.name == "score":
        access = store.S3Access(
            anonymous=bool(job.params.get("anonymous")),
            requester_pays=bool(job.params.get("requester_pays")),
            own=tuple(store.to_uri(one) for one in (job.out,) if one),
        )
        store.set_s3_access(access)
    unchecked: set[str] = set()
    for name, place in _places(job):
        why = f"--env {storage} may lead elsewhere" if storage and _is_remote(place) else ""
        why = why or _check_place(place, folder)
        if name == "model" and not why:
            why = _check_model(place, folder)
        if why:
            unchecked.add(name)
            write(f"not checked: {job.labels[name]} {place} ({why})")
    if job.name == "score" and job.out is not None and job.params.get("model") is not None:
        why = f"--env {storage} may lead elsewhere" if storage and _is_remote(job.out) else ""
        if not why and (settings is None or "model" in unchecked):
            why = "it depends on what was not checked"
        if why := why or _check_out(job, settings, folder):
            write(f"not checked: {job.labels['out']} {job.out} ({why})")


def _settings(job: Submission, folder: Path | None) -> Any:
    """Return the settings of the job, None if they are not known here. Raises ConfigError."""
    if job.name == "evaluate":
        return None
    file = job.params.get("config_file")
    here = None if file is None else Path(_here(str(file), folder))
    if here is not None and not here.is_file():
        return None
    given: dict[str, Any] = {
        "device": job.params.get("device") or "auto",
        "sets": job.params.get("sets") or (),
        "config_file": here,
    }
    if job.name == "score":
        return score_settings(max_error_rate=job.params.get("max_error_rate"), **given)
    cls = config.SETTINGS[job.name.removeprefix("train-")]
    return train_settings(cls, preset=job.params.get("preset"), **given)


def _places(job: Submission) -> Iterator[tuple[str, str]]:
    """Yield each place that the job reads, with its parameter."""
    for name, value in job.params.items():
        if name in _READ and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                yield name, str(one)


def _is_remote(place: str) -> bool:
    return not store.traits(store.to_uri(place)).file_locks and not place.startswith(_SHIPPED)


def _here(place: str, folder: Path | None) -> str:
    """Return a place as this machine finds it: a relative path is below the uploaded folder."""
    relative = not place.startswith(_SHIPPED) and not store.is_absolute(place)
    return str(folder / place) if relative and folder is not None else place


def _check_place(place: str, folder: Path | None) -> str:
    """Return why a place cannot be checked, "" if something is there.

    Raises ConfigError for a path of this machine alone, InputError if nothing is there.
    """
    if place.startswith(_SHIPPED):
        return ""
    if not store.is_absolute(place):
        if folder is None:
            return "nothing is uploaded, so it is relative to a folder of the cluster"
        if not place.startswith("~") and _first(_here(place, folder)):
            return ""
        raise ConfigError(
            "a relative path that the upload does not hold; give s3://... or the absolute path of "
            "a folder that all nodes share",
            place,
        )
    try:
        if _first(place):
            return "" if _is_remote(place) else "it is on this machine; all nodes must have it too"
    except (InputError, StoreError, ObjectError) as error:
        if error.text.startswith(("no such bucket", "not the name of a bucket", "no bucket")):
            raise
        return error.text.partition(";")[0]
    if not _is_remote(place):
        return "it is not on this machine"
    raise InputError("there is nothing; check the name of the object or prefix", place)


def _first(place: str) -> bool:
    """Return whether there is an object."""
    return next(iter(store.find_objects(place)), None) is not None


def _check_model(place: str, folder: Path | None) -> str:
    """Return why a model cannot be checked. Raises ModelError if it cannot be used."""
    from cctmn.model.card import WEIGHTS, read_card

    model = _here(place, folder)
    card = read_card(model)
    if model.startswith(_SHIPPED):
        return ""
    weights = store.look_up(store.join(store.to_uri(model), WEIGHTS))
    if weights is not None and weights.error_code:
        return f"{WEIGHTS} cannot be read from here"
    if weights is None or weights.size != card.weights_bytes:
        raise ModelError(f"{WEIGHTS} is missing or is cut; copy the model again", place)
    return ""


def _check_out(job: Submission, settings: Any, folder: Path | None) -> str:
    """Return why OUT cannot be checked. Raises ResumeError if it holds another job's results."""
    from cctmn.model.card import read_card
    from cctmn.score import begun
    from cctmn.score.job import ScoreJob
    from cctmn.score.models import source_of
    from cctmn.score.prepare import READER_VERSION

    assert job.out is not None
    out, model = store.to_uri(job.out), _here(str(job.params["model"]), folder)
    card = read_card(model)
    source = source_of(
        card, model, lesion_nms_iou=settings.lesion_nms_iou, precision=settings.precision
    )
    try:
        held = begun.read(out)
        if held == begun.Begun():
            is_here = _is_remote(out) or store.to_path(out).is_dir()
            return "" if is_here else "it is not on this machine"
        device = begun.device_of(held, gpus=settings.gpus, precision=source.precision, name=job.out)
        planned = ScoreJob(
            inputs=(),
            out=job.out,
            source=source,
            settings=settings,
            reader=min(held.reader or READER_VERSION, READER_VERSION),
            device=device,
            has_numerics_in_identity=held.has_numerics_in_identity,
        )
        output_folder.check_same(
            store.join(out, "private", "run.json"), identity=planned.identity, name=job.out
        )
    except (ResumeError, ConfigError):
        raise
    except CctmnError as error:
        return error.text.partition(";")[0]
    return ""
