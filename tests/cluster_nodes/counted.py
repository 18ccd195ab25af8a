"""jobs/score.py with a tally: the same command, whose scorer also writes down each slice it scores.

In: a file for the tally in CCTMN_TALLY, then what `cctmn score` takes. Out: a byte a scored slice.
A test can so tell work that was done twice, which the rows, by design, do not show.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cctmn.cli import cli, main
from cctmn.score import models
from cctmn.score.scorer import ImageArray, Scorer


class Counted:
    """A scorer that appends a byte per slice to a file, after it has scored it."""

    def __init__(self, load: Callable[[bool], Scorer], tally: str, gpu: bool) -> None:
        self._scorer, self._tally = load(gpu), tally

    def predict(self, images: Sequence[ImageArray], *, masks: bool) -> Any:
        result = self._scorer.predict(images, masks=masks)
        with open(self._tally, "ab") as file:  # noqa: PTH123
            file.write(b"." * len(images))
        return result


def open_counted(folder: str, **options: Any) -> Any:
    source = open_source(folder, **options)
    load = functools.partial(Counted, source.load, os.environ["CCTMN_TALLY"])
    return dataclasses.replace(source, load=load)


open_source = models.open_source

if __name__ == "__main__":
    # by its importable name, for the workers know no __main__
    from tests.cluster_nodes import counted

    models.open_source = counted.open_counted  # type: ignore[assignment]
    main(lambda: cli(["score", "--address", "auto", *sys.argv[1:]], prog_name="counted"))
