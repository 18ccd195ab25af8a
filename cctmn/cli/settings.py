"""`cctmn settings`: every setting of a command with its default, range and meaning."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence

import click

from cctmn import config
from cctmn.settings import Setting, describe, to_text

WIDTH = 98


@click.command(
    epilog="""\b
Example:
  cctmn settings score
  cctmn settings detector --preset paper-resnet34-t1
"""
)
@click.argument("stage", type=click.Choice(list(config.SETTINGS)), default="score")
@click.option("--preset", metavar="NAME", help="Show the values of this preset.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings as JSON.")
def settings(stage: str, *, preset: str | None, as_json: bool) -> None:
    """List the settings of score, detector or classifier.

    Give them to `cctmn score` or `cctmn train` as --set KEY=VALUE, or in a TOML file as --config.
    """
    described = describe(config.load(config.SETTINGS[stage], preset=preset))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in described], indent=2))
        return
    click.echo(settings_text(described))
    if about := config.preset_summaries(stage):
        click.echo("\npresets:\n" + "\n".join(f"  {name}: {use}" for name, use in about.items()))


def settings_text(described: Sequence[Setting]) -> str:
    """Return one paragraph per setting: key = default, then range, unit and meaning."""
    lines = []
    for one in described:
        about = ", ".join(part for part in (one.allowed, one.unit) if part)
        lines.append(f"{one.key} = {to_text(one.default)}   [{about}]")
        lines.append(
            textwrap.fill(one.help, WIDTH, initial_indent="    ", subsequent_indent="    ")
        )
    return "\n".join(lines)


def settings_epilog(stage: str, example: str) -> str:
    """Return the end of a command's help: an example, its settings and its presets."""
    # The character \b keeps click from rewrapping a paragraph.
    keys = describe(config.SETTINGS[stage])
    parts = [f"\b\nExample:\n{textwrap.indent(example, '  ')}"]
    listed = "\n".join(
        textwrap.fill(
            f"{one.key} = {to_text(one.default)}: {one.help} [{one.allowed}]",
            WIDTH - 2,
            initial_indent="  ",
            subsequent_indent="      ",
        )
        for one in keys
    )
    parts.append(f"\b\nSettings for --set and --config (cctmn settings {stage}):\n{listed}")
    if known := config.presets(stage):
        parts.append(f"\b\nPresets:\n  {', '.join(known)}")
    return "\n\n".join(parts)
