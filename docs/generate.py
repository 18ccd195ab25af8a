"""Write the generated parts of the documentation from the code that they describe.

Settings, columns, flags, error codes and exit codes each live in one place in the code. This script
writes them between the markers `<!-- generated: NAME -->` and `<!-- end -->` of the pages in docs/.
With --check it writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from cctmn import config, errors, schema
from cctmn.cli import cli
from cctmn.cli.common import leaf_commands
from cctmn.evaluate import criteria
from cctmn.metrics import document, metric
from cctmn.schema import Column
from cctmn.score import rates
from cctmn.store import s3_errors

DOCS = Path(__file__).parent
PINS = DOCS.parent / "constraints.txt"
PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def columns(table: Sequence[Column]) -> str:
    """Return the columns of a table as a Markdown table."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{c.name}` | {_type(c)} | {c.doc} |" for c in table]
    return "\n".join(lines) + "\n"


def texts(heading: str, entries: Mapping[str, str]) -> str:
    """Return names and their sentences as a Markdown table."""
    lines = [f"| {heading} | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {text.replace('<', '&lt;')} |" for name, text in entries.items()]
    return "\n".join(lines) + "\n"


def codes() -> str:
    """Return the codes of rows without a score, and whether each is an error."""
    lines = ["| code | state | meaning |", "|---|---|---|"]
    for code, meaning in errors.SLICE_CODES.items():
        lines.append(f"| `{code}` | {errors.state_of(code).replace('_', ' ')} | {meaning} |")
    return "\n".join(lines) + "\n"


def s3_answers() -> str:
    """Return what becomes of each refusal of S3: a row with a code, or one line and an end."""
    lines = ["| answer of S3 | result | what to do |", "|---|---|---|"]
    groups: dict[str, list[str]] = {}
    for answer, code in s3_errors.OF_OBJECT.items():
        groups.setdefault(code, []).append(answer)
    groups["storage_refused"] += [f"{prefix}*" for prefix in s3_errors.OF_OBJECT_PREFIX]
    groups["permission_denied"] = sorted(s3_errors.DENIED)
    for code, answers in groups.items():
        advice = errors.OBJECT_CODES[code][1]
        lines.append(f"| {_listed(answers)} for an object | a row `{code}` | {advice} |")
    advice = errors.OBJECT_CODES["storage_refused"][1]
    lines.append(f"| another 4xx for an object | a row `storage_refused` | {advice} |")
    for answer, sentence in s3_errors.OF_USER.items():
        reason, advice = sentence.split("; ", 1)
        lines.append(f"| `{answer}` | the job ends: {reason} | {advice} |")
    lines += [
        f"| {_listed(sorted(s3_errors.OTHER_REGION))} | the job ends and names the region | "
        "set AWS_REGION |",
        "| another 4xx for a listing or a write | the job ends with the code of S3 | "
        "check the bucket, the rights and the endpoint |",
        "| 5xx, 408, 429, a cut or silent answer: always for one object | a row `storage_failed` | "
        "run the same command again |",
        "| the same for the whole storage | the job ends with exit code 4 | "
        "run the same command again |",
    ]
    return "\n".join(lines) + "\n"


def _listed(answers: Sequence[str]) -> str:
    return ", ".join(f"`{answer}`" for answer in answers)


def commands() -> str:
    """Return every command with its arguments and options."""
    sections = []
    for name, command in leaf_commands(cli):
        usage = " ".join(
            p.make_metavar(click.Context(command))
            for p in command.params
            if isinstance(p, click.Argument)
        )
        lines = [f"## cctmn {name}", "", inspect.cleandoc(command.help or "")]
        lines += ["", f"`cctmn {name} [OPTIONS] {usage}`".replace(" `", "`")]
        lines += ["", "| option | meaning |", "|---|---|"]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                names = ", ".join(f"`{opt}`" for opt in option.opts)
                lines.append(f"| {names} | {(option.help or '').replace('|', chr(92) + '|')} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _type(column: Column) -> str:
    if "struct" in str(column.type):
        return "list of structs"
    return str(column.type).replace("list<element: ", "list<").replace("list<item: ", "list<")


def _predictions() -> str:
    every = schema.prediction_columns(["CLASS"], ranked_boxes=True, masks=True)
    return columns([c._replace(doc=c.doc.replace("the class CLASS", "the class")) for c in every])


def _sections() -> str:
    sections = document.SCHEMA["properties"]
    return texts("section", {name: s.get("description", "") for name, s in sections.items()})


def licences() -> str:
    """Return every pinned package of the product with the licence that it states."""
    lines = ["| package | licence |", "|---|---|"]
    names = re.findall(r"^([a-z0-9-]+)==", PINS.read_text(encoding="utf-8"), re.MULTILINE)
    lines += [f"| {name} | {licence_of(name)} |" for name in names]
    return "\n".join(lines) + "\n"


def licence_of(name: str) -> str:
    """Return the licence that an installed package states."""
    stated = importlib.metadata.metadata(name)
    if expression := stated.get("License-Expression"):
        return str(expression)
    classes = [c for c in stated.get_all("Classifier") or [] if c.startswith("License ::")]
    if classes:
        return "; ".join(c.rpartition(" :: ")[2] for c in classes)
    return (stated.get("License") or "not stated").partition("\n")[0]


PARTS: Mapping[str, Callable[[], str]] = {
    "metrics-sections": _sections,
    "metrics-ids": lambda: texts("id", metric.catalogue(["CLASS"])),
    "commands": commands,
    "rates": rates.markdown,
    "settings-score": lambda: config.markdown("score"),
    "settings-detector": lambda: config.markdown("detector"),
    "settings-classifier": lambda: config.markdown("classifier"),
    "criteria": criteria.markdown,
    "predictions": _predictions,
    "lesions": lambda: columns(schema.LESION_COLUMNS),
    "studies": lambda: columns(schema.study_columns(["CLASS"])),
    "series-reasons": lambda: texts("reason", schema.SERIES_REASONS),
    "inventory": lambda: columns(schema.INVENTORY_COLUMNS),
    "labels": lambda: columns(schema.LABELS_COLUMNS),
    "flags": lambda: texts("flag", schema.FLAGS),
    "codes": codes,
    "s3-answers": s3_answers,
    "licences": licences,
}


def generated(page: str) -> str:
    """Return the text of a page with its generated parts written anew."""
    return PART.sub(lambda match: match[1] + "\n" + PARTS[match["name"]]() + "\n" + match[3], page)


def main(*, check: bool) -> int:
    """Update the pages, or count those that are out of date."""
    stale = 0
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = generated(before)
        if after == before:
            continue
        stale += 1
        if check:
            sys.stderr.write(f"{path}: out of date; run `make docs`\n")
        else:
            path.write_text(after, encoding="utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
