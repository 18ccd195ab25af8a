"""Public names, messages and help texts use the field's words and plain English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("cctmn/**/*.py"), *ROOT.glob("jobs/*.py")])

# Words that hid what was meant, each with the word to use instead.
NAMES = {
    "answers": "identity, predictions",
    "closes": "is_last",
    "evidence": "validation_output",
    "found": "predictions, candidates, matches: the noun",
    "heed": "obey, read",
    "knob": "setting",
    "knock": "probe",
    "said": "message, text",
    "say": "report",
    "sift": "filter_readable",
    "suppress": "nms_per_class",
    "talk": "report, log",
    "tell": "report",
    "there": "true, present, existing",
    "told": "reported",
    "trunk": "backbone",
}
# The file protocol of Python has a method of this name.
STANDARD = {("ranges.py", "tell"), ("tar_archive.py", "tell")}
PHRASES = {
    r"\bhangs? on\b": "depends on",
    r"(?<!there )(?<!There )\bis no (?!longer)": "is not a",
    r"\bno medical device\b": "not a medical device",
    r"\bthe same command goes on\b": "run the same command again to resume",
    r"\bNo talk\b": "Suppress progress messages",
    r"\bmend\b": "correct, fix",
    r"\bheed\b": "obey, read",
    r"\bknock": "probe",
    r"\bstumble": "fail",
    r"\bone a (?:GPU|line|slice|class|lesion)\b": "one per",
    r"\bfalse positives an image\b": "false positives per image",
    r"\bAP an image\b": "AP per image",
    r"\bto be had\b": "available",
}


def public_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Functions, classes, fields and parameters that another module may use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name.startswith("_"):
                continue
            yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        yield field.lineno, field.target.id
            else:
                arguments = node.args
                for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                    yield argument.lineno, argument.arg


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Texts that a person reads: arguments of calls and raised errors, and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def test_public_names_are_the_fields_words() -> None:
    offenders = []
    for path in SOURCES:
        for line, name in public_names(ast.parse(path.read_text(encoding="utf-8"))):
            private = NAMES.keys() & set(name.strip("_").lower().split("_"))
            offenders += [
                f"{path.relative_to(ROOT)}:{line} {name}: write {NAMES[word]}"
                for word in sorted(private)
                if not name.startswith("_") and (path.name, name) not in STANDARD
            ]
    assert not offenders


def test_messages_and_docstrings_are_plain_english() -> None:
    offenders = []
    for path in SOURCES:
        for line, text in messages(ast.parse(path.read_text(encoding="utf-8"))):
            offenders += [
                f"{path.relative_to(ROOT)}:{line} {text[:60]!r}: write {better!r}"
                for phrase, better in PHRASES.items()
                if re.search(phrase, text)
            ]
    assert not offenders
