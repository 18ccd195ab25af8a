"""The help of every command, the frozen list of options, and settings that are checked first."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from cctmn import config
from cctmn.cli import cli
from cctmn.cli.common import leaf_commands
from cctmn.settings import describe, to_text
from tests.conftest import REPO

# Users' scripts rely on these names. Change the list on purpose, and say so in CHANGELOG.md.
OPTIONS = {
    "doctor": "INPUTS --anonymous --json --requester-pays -i/--input -m/--model -o/--out/--output",
    "score": "INPUTS --address --anonymous --config --device --dry-run --json --limit "
    "--max-error-rate --requester-pays --retry-errors --root --set -i/--input "
    "-m/--model -o/--out/--output -q/--quiet",
    "plan": "--core-price --cores --cores-per-node --decode-ms --device --gpu-price --gpus "
    "--gpus-per-node --json --objects --rate --read-price --slices --write-price -m/--model",
    "errors": "OUT --passed-over",
    "view": "OUT WHAT --full -o/--out/--output",
    "table": "OUT --by --names -o/--out/--output",
    "evaluate": "SCORED --against --by --json --key --label-map --labels --mask-split --masks "
    "--no-gallery --overwrite --resamples --root --seed --to --training "
    "-m/--model -o/--out/--output -q/--quiet",
    "compact": "OUT --dry-run --json -q/--quiet",
    "samplesize": "--expected --icc --json --level --lower-bound --power --prevalence --sided "
    "--slices-per-patient --width",
    "accept": "CRITERIA SCORED --json --key --label-map --labels --overwrite --root "
    "-m/--model -o/--out/--output -q/--quiet",
    "report": "FOLDER --open --pictures --studies --with -q/--quiet",
    "labels covidx-ct": "SPLIT --exclude -o/--out/--output",
    "labels sample": "PLACE --per-class --seed -o/--out/--output",
    "labels audit": "SETS --hash --json --names --root",
    "train detector": "--address --config --data --device --json --name --preset --root --set "
    "--split --valid --valid-split -m/--model -o/--out/--output -q/--quiet",
    "train classifier": "--address --config --data --device --json --label-map --name --preset "
    "--root --set --split --valid --valid-split -m/--model -o/--out/--output -q/--quiet",
    "models import": "FILE --as-classifier --lesions --overwrite --seed -o/--out/--output",
    "models show": "FOLDER --json",
    "models verify": "FOLDER",
    "models calibrate": "FOLDER SCORED --key --label-map --labels --overwrite --prevalence --root",
    "models evaluate": "FOLDER --json --label-map --lesions --record --slices --split",
    "settings": "STAGE --json --preset",
    "submit": "JOB ARGS --address --env --follow --json --list --no-upload --no-wait --stop "
    "--working-dir",
    "demo": "-o/--out/--output",
    "phantom": "KIND --count --extent --overwrite --patients --recipe --seed -o/--out/--output",
}


def spelled(command: click.Command) -> str:
    arguments = [p.name.upper() for p in command.params if isinstance(p, click.Argument)]
    options = sorted("/".join(p.opts) for p in command.params if isinstance(p, click.Option))
    return " ".join([*arguments, *options])


def test_options_are_frozen() -> None:
    assert {name: spelled(command) for name, command in leaf_commands(cli)} == OPTIONS


def test_every_command_has_help_an_example_and_help_for_each_option() -> None:
    problems = []
    for name, command in leaf_commands(cli):
        if "Example:" not in (command.epilog or "") or f"cctmn {name}" not in command.epilog:
            problems.append(f"{name}: no example")
        if not (command.help or "").split("\n")[0].endswith("."):
            problems.append(f"{name}: its help does not begin with a sentence")
        problems += [
            f"{name} {option.opts[-1]}: no help"
            for option in command.params
            if isinstance(option, click.Option) and not (option.help or "").strip()
        ]
    assert not problems


@pytest.mark.parametrize("group", [[], ["models"], ["train"], ["labels"]])
def test_summaries_of_commands_are_whole_sentences(group: list[str]) -> None:
    listed = CliRunner().invoke(cli, [*group, "--help"]).output
    assert "..." not in listed.split("Commands:")[1]


@pytest.mark.parametrize("stage", list(config.SETTINGS))
def test_every_setting_is_listed_in_help_and_by_the_command(stage: str) -> None:
    command = [stage] if stage == "score" else ["train", stage]
    shown = CliRunner().invoke(cli, [*command, "--help"]).output
    listed = CliRunner().invoke(cli, ["settings", stage]).output
    for one in describe(config.SETTINGS[stage]):
        assert f"{one.key} = {to_text(one.default)}" in shown
        assert f"{one.key} = {to_text(one.default)}   [{one.allowed}" in listed
        assert one.help
    assert all(name in shown for name in config.presets(stage))


def test_settings_show_the_values_of_a_preset() -> None:
    args = ["settings", "detector", "--preset", "paper-resnet34-t1", "--json"]
    listed = json.loads(CliRunner().invoke(cli, args).output)
    assert {"resnet34", 1, "merge"} <= {one["default"] for one in listed}


def test_version_has_a_short_form() -> None:
    assert "version" in CliRunner().invoke(cli, ["-V"]).output


def test_an_unknown_command_names_the_nearest() -> None:
    assert "did you mean score?" in CliRunner().invoke(cli, ["scroe"]).output


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (["train", "detector", "--preset", "paper-resnet5"], "did you mean paper-resnet50?"),
        (["train", "classifier", "--set", "lr=1e-4"], "did you mean optim.lr?"),
        (["score", "in", "-m", "cctmn:demo", "--set", "batchsize=3"], "did you mean batch_size?"),
        (["settings", "classifier", "--preset", "papre"], "did you mean paper?"),
    ],
)
def test_a_mistyped_setting_ends_at_once_and_names_the_nearest(
    args: list[str], nearest: str
) -> None:
    """Under 0.5 s of CPU, as the heavy packages are not imported."""
    needed = {"train": ["--data", "x", "-o", "y"], "score": ["-o", "y"]}.get(args[0], [])
    code = (
        "import resource, sys\n"
        "from cctmn.cli import cli, main\n"
        f"try: main(lambda: cli({[*args, *needed]}, standalone_mode=False))\n"
        "except SystemExit as end: code = end.code\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'boto3', 'pydicom'} & sys.modules.keys()\n"
        "print(heavy or 'light', code, usage.ru_utime + usage.ru_stime)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO
    )
    weight, exit_code, cpu_s = done.stdout.split()
    assert (weight, exit_code) == ("light", "2")
    assert float(cpu_s) < 0.5
    [line] = done.stderr.splitlines()
    assert nearest in line
