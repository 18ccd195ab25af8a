"""The tree of errors: one line each, exit codes, and the way across processes."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from cctmn import errors
from cctmn.errors import (
    OBJECT_CODES,
    SLICE_CODES,
    CctmnError,
    ObjectError,
    SliceError,
    from_wire,
    to_wire,
)

PACKAGE = Path(errors.__file__).parent
LEAVES = [kind for kind in CctmnError.__subclasses__() if kind is not ObjectError]
MADE = [kind("OUT: cannot be written; check OUT: free its disk") for kind in LEAVES] + [
    ObjectError(code, "s3://b/a: b; c", hint) for code in OBJECT_CODES for hint in ("", "do: this")
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
    for text in (to_wire(error), f"Traceback:\n  File\n{to_wire(error)}\nmore of it\n"):
        read = from_wire(text)
        assert type(read) is type(error)
        assert str(read) == str(error)
        assert getattr(read, "code", None) == getattr(error, "code", None)


@pytest.mark.parametrize("error", MADE, ids=ids)
def test_an_error_survives_pickling(error: CctmnError) -> None:
    read = pickle.loads(pickle.dumps(error))
    assert (type(read), str(read)) == (type(error), str(error))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ValueError: no",
        "cctmn.errors.SliceError: truncated",
        "cctmn.errors.re: text",
        "cctmn.errors.Nothing: text",
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
    """ "what: where; what to do". A message that wraps another error ends with that error's."""
    lacking, count = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, message in written_messages(ast.parse(path.read_text(encoding="utf-8"))):
            count += 1
            if "; " not in message and not message.endswith(": {error}'"):
                lacking.append(f"{path.relative_to(PACKAGE)}:{line}: {message}")
    assert lacking == []
    assert count > 150
