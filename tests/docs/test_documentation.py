"""The documentation is complete and current: settings, options, columns, flags and codes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

from cctmn import config, schema
from cctmn.cli import cli
from cctmn.cli.common import leaf_commands
from cctmn.errors import SLICE_CODES
from cctmn.settings import describe
from tests.conftest import REPO

DOCS = REPO / "docs"
PAGES = sorted([REPO / "README.md", REPO / "cluster/README.md", *DOCS.glob("*.md")])
MAX_README_WORDS = 900


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_generated_parts_are_current(generate: ModuleType) -> None:
    stale = [
        p.name for p in DOCS.glob("*.md") if generate.generated(p.read_text()) != p.read_text()
    ]
    assert not stale, "run `make docs`"


def test_every_setting_preset_column_flag_and_code_is_documented() -> None:
    output, settings = text("output.md"), text("settings.md")
    names = [c.name for c in schema.prediction_columns(["CLASS"], ranked_boxes=True, masks=True)]
    names += [c.name for c in schema.study_columns(["CLASS"])]
    names += [c.name for c in (*schema.INVENTORY_COLUMNS, *schema.LESION_COLUMNS)]
    names += [c.name for c in schema.LABELS_COLUMNS]
    missing = [name for name in [*names, *schema.FLAGS, *SLICE_CODES] if f"`{name}`" not in output]
    for command, cls in config.SETTINGS.items():
        known = [one.key for one in describe(cls)] + list(config.presets(command))
        missing += [name for name in known if f"`{name}`" not in settings]
    assert not missing


def test_every_command_is_documented() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [name for name, _ in leaf_commands(cli) if f"cctmn {name}" not in everything]


def test_every_option_is_documented() -> None:
    """An option is in docs/, or in the generated list of options of its command."""
    options = text("commands.md")
    missing = []
    for name, command in leaf_commands(cli):
        section = options.split(f"## cctmn {name}\n", 1)[-1].split("\n## ", 1)[0]
        missing += [
            f"{name} {option.opts[-1]}"
            for option in command.params
            if isinstance(option, click.Option)
            and not option.hidden
            and not all(f"`{opt}`" in section for opt in option.opts)
        ]
    assert not missing


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of cctmn in the pages' code blocks, continuation lines joined."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("cctmn "):
                    yield page.name, shlex.split(line, comments=True)[1:]


def test_shown_commands_parse() -> None:
    """Each command line of the documentation has options and arguments that exist."""
    lines = list(shown_commands())
    assert len(lines) > 15
    wrong = []
    for page, words in lines:
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in command.commands, (page, words)
            command = command.commands[words.pop(0)]
        if "--help" in words or "..." in " ".join(words):
            continue
        try:
            command.make_context("cctmn", [w.replace("FILE.pth", __file__) for w in words])
        except click.UsageError as error:
            # A file of an example need not exist; everything else must hold.
            if "does not exist" not in error.message:
                wrong.append((page, words, error.message))
    assert not wrong


def test_each_table_of_the_paper_has_a_command_or_a_reason() -> None:
    rows = re.findall(r"^\| (\d) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", text("paper.md"), re.M)
    assert [number for number, _, _ in rows] == list("123456789")
    sections = re.findall(r"^## (.*?)\n\n```\n(cctmn .*?)```", text("paper.md"), re.M | re.S)
    anchors = {re.sub(r"[^a-z0-9 ]", "", title.lower()).replace(" ", "-") for title, _ in sections}
    for _, command, needs in rows:
        assert re.findall(r"\(#(.*?)\)", command)[0] in anchors
        assert needs.strip()


def test_links_within_the_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_the_readme_is_short() -> None:
    prose = re.sub(r"^```.*?^```", "", (REPO / "README.md").read_text(), flags=re.M | re.S)
    assert len(prose.split()) <= MAX_README_WORDS
