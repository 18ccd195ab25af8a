"""jobs/score.py with a stand-in for the network, and an index of very small pages.

The index of a small archive is then still running when the first slices are scored.
"""

from __future__ import annotations

import sys
from typing import Any

from cctmn.cli import cli, main
from cctmn.score import indexing, models
from tests.makers import stand_in

PAGE = 4


def open_stand_in(_: str, **__: Any) -> Any:
    return stand_in(sleep_s=0.05)


if __name__ == "__main__":
    # by its importable name, for the workers know no __main__
    from tests.cluster_nodes import slowly_indexed

    indexing.PAGE_OBJECTS = (PAGE, PAGE)  # type: ignore[misc]
    models.open_source = slowly_indexed.open_stand_in
    main(lambda: cli(["score", "--address", "auto", *sys.argv[1:]], prog_name="slowly_indexed"))
