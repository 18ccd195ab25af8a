"""The pages' templates: one environment for all of them, and their style sheets.

A page holds its style, so that it needs no other file and no network.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cctmn import schema
from cctmn.metrics.metric import DRAWN_SCORE
from cctmn.report import numbers
from cctmn.view.draw import SCALE_BAR_TEXT

HERE: Final = Path(__file__).parent
_BREAK: Final = re.compile(r"([_+/]|(?<!\d)\.|\.(?!\d))")


def render(name: str, context: Mapping[str, Any], *, styles: Sequence[str]) -> str:
    """Return a template of this folder with the context, and with these style sheets in `style`."""
    return _environment().get_template(name).render(context, style=_style(tuple(styles)))


def soft(text: object) -> Markup:
    """Return text that may break after _ . + and /, so that a long name does not widen a column.

    It does not break after the point of a number.
    """
    return Markup(_BREAK.sub(r"\1<wbr>", str(escape(text))))  # noqa: S704  escaped


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(
        sentences=schema.FLAGS,
        reasons=schema.SERIES_REASONS,
        drawn_score=DRAWN_SCORE,
        scale_bar_text=SCALE_BAR_TEXT,
    )
    environment.filters.update(
        soft=soft,
        short=numbers.short_key,
        count=numbers.count_text,
        length_px=numbers.length_text,
        decimal=numbers.decimal_text,
        percent=numbers.percent_text,
        value=numbers.value_text,
        interval=numbers.interval_text,
        naive=numbers.naive_text,
        few=numbers.few_text,
        anchor=lambda metric: numbers.anchor(metric.id),
        is_proportion=numbers.is_proportion,
        times_narrower=numbers.times_narrower,
    )
    return environment


@functools.cache
def _style(names: tuple[str, ...]) -> Markup:
    text = "".join((HERE / name).read_text(encoding="utf-8") for name in names)
    return Markup(text)  # noqa: S704  our own files
