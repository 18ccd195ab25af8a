"""The slices that a labelled data set cannot use, with the reason, and the check that finds them.

Every slice that is left out of training is counted here. The lines contain file names, which may
identify patients. They belong on the terminal and in `OUT/private/`, never in a model's card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from cctmn.errors import DataError, ObjectError, SliceError

# Names per line; the count covers the rest.
NAMED: Final = 5


class Sample(Protocol):
    """A labelled slice of any data set."""

    @property
    def name(self) -> str: ...
    @property
    def patient(self) -> str:
        """Return the patient's id, or "" if it is unknown."""


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class DatasetIssues:
    """Names of the slices that were left out, by reason."""

    no_mask: tuple[str, ...] = ()
    no_image: tuple[str, ...] = ()  # but a mask
    missing: tuple[str, ...] = ()  # in the split file, not on disk
    unlabelled: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()  # with its key of SLICE_CODES

    def lines(self) -> list[str]:
        """Return one line per kind of issue that occurs: its count and the first names."""
        return [f"{kind} ({names})" for kind, names in self.kinds()]

    def kinds(self) -> list[tuple[str, str]]:
        """Return, for each kind of issue that occurs, its count as text and the first names."""
        kinds = {
            "images without a mask": self.no_mask,
            "masks without an image": self.no_image,
            "names of the split file without a file": self.missing,
            "files without a class": self.unlabelled,
            "slices without a lesion": self.empty,
            "unreadable slices": [f"{name} ({code})" for name, code in self.unreadable],
        }
        return [
            (f"{kind}: {len(names)}", first_few(names)) for kind, names in kinds.items() if names
        ]


def first_few(names: Sequence[str]) -> str:
    """Return the first names as text, with dots if there are more."""
    return ", ".join([*names[:NAMED], *["..."] * (len(names) > NAMED)])


def require_samples(samples: Sequence[S], *, issues: DatasetIssues, where: str) -> tuple[S, ...]:
    """Return the samples. Raises DataError if there is none."""
    if not samples:
        reason = "; ".join(issues.lines()) or "the data set is empty"
        raise DataError("no slice can be used; check its files and lists", where, reason)
    return tuple(samples)


def filter_readable(
    samples: Sequence[S], *, issues: DatasetIssues, read: Callable[[S], bool], threads: int
) -> tuple[tuple[S, ...], DatasetIssues]:
    """Read every sample once and keep those that can be used; the others become issues.

    `read` raises ObjectError or SliceError for an unreadable sample and returns False for one
    without a lesion. Training reads each slice once per epoch anyway, so this adds one reading to
    50 or 100 of them, and no epoch stops at a broken file. Raises DataError if no sample is left.
    """

    def code_of(sample: S) -> str:
        try:
            return "ok" if read(sample) else "empty"
        except (ObjectError, SliceError) as error:
            return error.code

    # A StoreError (storage does not answer) passes through map, which cancels the waiting reads.
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        codes = list(zip(samples, pool.map(code_of, samples), strict=True))
    empty = [s.name for s, code in codes if code == "empty"]
    unreadable = [(s.name, code) for s, code in codes if code not in ("ok", "empty")]
    issues = replace(
        issues,
        empty=(*issues.empty, *empty),
        unreadable=(*issues.unreadable, *unreadable),
    )
    kept = [sample for sample, code in codes if code == "ok"]
    return require_samples(kept, issues=issues, where="data set"), issues
