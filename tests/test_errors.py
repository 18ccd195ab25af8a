"""The tree of errors: one line each, exit codes, and the way across processes."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from traceback import format_exception

import pytest

from cctmn import errors
from cctmn.cli import main
from cctmn.errors import (
    OBJECT_CODES,
    SLICE_CODES,
    CctmnError,
    DataError,
    ObjectError,
    SliceError,
    from_wire,
    to_wire,
)

PACKAGE = Path(errors.__file__).parent
LEAVES = [kind for kind in CctmnError.__subclasses__() if kind is not ObjectError]
MADE = [
    *(kind("cannot be written; check OUT: free its disk", "a: b", "Dö\nJo (x)") for kind in LEAVES),
    *(ObjectError(c, "s3://b/a: b; c", hint) for c in OBJECT_CODES for hint in ("", "do: this")),
]


def ids(value: object) -> str:
    return getattr(value, "code", type(value).__name__)


def test_no_error_is_a_value_error() -> None:
    for kind in (CctmnError, *CctmnError.__subclasses__(), SliceError):
        assert not issubclass(kind, ValueError)
    assert not issubclass(SliceError, CctmnError)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = errors.__doc__ or ""
    for kind in CctmnError.__subclasses__():
        assert f"{kind.__name__:<17} exit code {kind.exit_code}: " in drawn


@pytest.mark.parametrize("error", MADE, ids=ids)
def test_an_error_survives_the_wire(error: CctmnError) -> None:
    traceback = "".join(format_exception(error))
    for text in (to_wire(error), f"Traceback:\n  File\n{traceback}\nmore of it\n"):
        read = from_wire(text)
        assert type(read) is type(error)
        assert str(read) == str(error)
        assert vars(read) == vars(error)


@pytest.mark.parametrize("error", MADE, ids=ids)
def test_an_error_survives_pickling(error: CctmnError) -> None:
    read = pickle.loads(pickle.dumps(error))
    assert (type(read), str(read)) == (type(error), str(error))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ValueError: no",
        'cctmn error ["SliceError", "truncated"]',
        'cctmn error ["re", "text"]',
        'cctmn error ["Nothing", "text"]',
    ],
)
def test_other_texts_are_not_errors_of_the_package(text: str) -> None:
    assert from_wire(text) is None


def test_an_object_error_says_where_and_what_to_do() -> None:
    assert str(ObjectError("not_found", "/a/b")) == "/a/b: not found; check the name"
    assert str(ObjectError("not_found", "/a", "give a table")) == "/a: not found; give a table"
    assert OBJECT_CODES.keys() <= SLICE_CODES.keys()


@pytest.mark.parametrize("sentence", SLICE_CODES.values())
def test_a_slice_code_is_explained_by_one_sentence(sentence: str) -> None:
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert "\n" not in sentence


def written_messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and message of each error that is made in a module; fields as {their source}.

    A message that is a variable, such as the text of another error, is left out.
    """
    kinds = {kind.__name__ for kind in CctmnError.__subclasses__()} - {"ObjectError"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            message = node.args[0]
            if node.func.id in kinds and isinstance(message, ast.Constant | ast.JoinedStr):
                yield node.lineno, ast.unparse(message).replace("{{", "{")


def test_every_message_says_what_to_do() -> None:
    """A message that wraps another error ends with that error's."""
    lacking, count = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, message in written_messages(ast.parse(path.read_text(encoding="utf-8"))):
            count += 1
            if "; " not in message and not message.endswith(": {error.text}'"):
                lacking.append(f"{path.relative_to(PACKAGE)}:{line}: {message}")
    assert lacking == []
    assert count > 150


# What holds the name of a file or of a patient, in the source of a field.
NAMES = re.compile(
    r"\{(?!len\()[^}]*\b(uri|path|place|where|folder|exclude|shared|twice|doubled)\b"
)


def test_no_text_holds_a_name() -> None:
    """A log gets the text of an error and nothing else; names stand in `where` and `names`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name not in ("settings.py", "submit.py"):  # names of settings, addresses
            for line, message in written_messages(ast.parse(path.read_text(encoding="utf-8"))):
                assert not NAMES.search(message), f"{path}:{line}"


def test_a_log_gets_no_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCTMN_LOG", "json")

    def fail() -> None:
        raise DataError("two patients; give one", "/scans/Doe_John", "Doe^John")

    with pytest.raises(SystemExit):
        main(fail)
    logged = json.loads(capsys.readouterr().err)
    assert logged["text"] == "two patients; give one (CCTMN_LOG=text shows the names)"
