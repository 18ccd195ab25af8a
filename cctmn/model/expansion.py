"""How large the content of a pickle is when every reference is written out.

Ten opcodes can name a tuple of two equal tuples of two equal tuples, and so on. Such a value takes
no memory, and to hash or compare it takes for ever. A deeply nested value overflows the stack. The
opcodes are therefore followed once, with sizes in place of values, before anything is built.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_ITEMS: Final = 10_000_000  # a checkpoint of a ResNet-50 has some ten thousand
MAX_DEPTH: Final = 500
_GET: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUT: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# Opcodes that put items into a container below them, and how many; None: all above the mark.
_FILL: Final = {
    "APPEND": 1,
    "SETITEM": 2,
    "BUILD": 1,
    "APPENDS": None,
    "SETITEMS": None,
    "ADDITEMS": None,
}


@dataclass(eq=False)
class _Value:
    """The size of a value: items with all that they refer to, and levels of nesting."""

    items: int = 1
    depth: int = 1

    def add(self, parts: Sequence[_Value]) -> None:
        self.items += sum(part.items for part in parts)
        self.depth = max(self.depth, 1 + max((part.depth for part in parts), default=0))
        if self.items > MAX_ITEMS or self.depth > MAX_DEPTH:
            raise ValueError("the pickle expands to too much")


class Expansion:
    """Follows the opcodes of one pickle.

    `follow` raises ValueError if a value expands to too much, and IndexError or KeyError if the
    opcodes use what is not there.
    """

    def __init__(self) -> None:
        self._stack: list[_Value | None] = []  # None is a mark
        self._memo: dict[int, _Value] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one opcode to the sizes."""
        name = opcode.name
        if name == "MARK":
            self._stack.append(None)
        elif name in _GET:
            self._stack.append(self._memo[int(argument)])
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name in _PUT or name == "MEMOIZE":
            place = len(self._memo) if name == "MEMOIZE" else int(argument)
            self._memo[place] = self._top()
        elif name in _FILL:
            count = _FILL[name]
            parts = self._to_mark() if count is None else [self._pop() for _ in range(count)]
            self._top().add(parts)
        elif pickletools.markobject in opcode.stack_before:
            self._push(opcode, self._to_mark())
        else:
            self._push(opcode, [self._pop() for _ in opcode.stack_before])

    def _push(self, opcode: pickletools.OpcodeInfo, parts: list[_Value]) -> None:
        for _ in opcode.stack_after:
            value = _Value()
            value.add(parts)
            self._stack.append(value)

    def _top(self) -> _Value:
        value = self._stack[-1]
        if value is None:
            raise IndexError("a mark in place of a value")
        return value

    def _pop(self) -> _Value:
        value = self._stack.pop()
        if value is None:
            raise IndexError("a mark in place of a value")
        return value

    def _to_mark(self) -> list[_Value]:
        parts = []
        while (value := self._stack.pop()) is not None:
            parts.append(value)
        return parts
