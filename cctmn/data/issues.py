"""What is wrong with the slices of a labelled data set, and the check that finds out.

In: samples and how to read one. Out: those that can be used, and the names of the others by kind.
Nothing is left out of a training without being counted here. The lines name files, which may
identify patients: they are for the terminal and `OUT/private/`, never for a model's card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from cctmn.errors import DataError, ObjectError, SliceError

NAMED: Final = 5  # names a line; the count tells the rest


class Sample(Protocol):
    """What all labelled slices have."""

    @property
    def name(self) -> str: ...
    @property
    def patient(self) -> str: ...  # "" if unknown


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Problems:
    """Names of the slices that were left out, by reason."""

    no_mask: tuple[str, ...] = ()
    no_image: tuple[str, ...] = ()  # but a mask
    missing: tuple[str, ...] = ()  # in the split file, not on disk
    unlabelled: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()  # with its key of SLICE_CODES

    def lines(self) -> list[str]:
        """One line for each kind that occurs: how many, and the first few by name."""
        return [f"{what} ({names})" for what, names in self.kinds()]

    def kinds(self) -> list[tuple[str, str]]:
        """For each kind that occurs how many, and apart from it the first few by name."""
        kinds = {
            "images without a mask": self.no_mask,
            "masks without an image": self.no_image,
            "names of the split file without a file": self.missing,
            "files without a class": self.unlabelled,
            "slices without a lesion": self.empty,
            "unreadable slices": [f"{name} ({code})" for name, code in self.unreadable],
        }
        return [(f"{kind}: {len(names)}", few(names)) for kind, names in kinds.items() if names]


def few(names: Sequence[str]) -> str:
    """The first names, with dots where there are more."""
    return ", ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])


def usable(samples: Sequence[S], *, problems: Problems, where: str) -> tuple[S, ...]:
    """The samples, or a DataError if none is left."""
    if not samples:
        reason = "; ".join(problems.lines()) or "the data set is empty"
        raise DataError(f"{where}: no slice can be used ({reason}); check its files and lists")
    return tuple(samples)


def sift(
    samples: Sequence[S], *, problems: Problems, read: Callable[[S], bool], threads: int
) -> tuple[tuple[S, ...], Problems]:
    """Read every sample once; those that fail, or for which `read` is False, become problems.

    Training reads each slice once an epoch anyway, so this adds the reading of one epoch to 50 or
    100 of them, and no epoch ends at a broken file.
    """

    def code_of(sample: S) -> str:
        try:
            return "ok" if read(sample) else "empty"
        except (ObjectError, SliceError) as error:
            return error.code

    # Storage that does not answer raises through map, which then cancels what has not begun.
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        codes = list(zip(samples, pool.map(code_of, samples), strict=True))
    empty = [s.name for s, code in codes if code == "empty"]
    unreadable = [(s.name, code) for s, code in codes if code not in ("ok", "empty")]
    problems = replace(
        problems,
        empty=(*problems.empty, *empty),
        unreadable=(*problems.unreadable, *unreadable),
    )
    kept = [sample for sample, code in codes if code == "ok"]
    return usable(kept, problems=problems, where="data set"), problems
