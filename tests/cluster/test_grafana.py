"""The dashboard asks for metrics that are counted, and its panels do not overlap."""

from __future__ import annotations

import itertools
import json
import re

from cctmn.score import meters
from tests.conftest import REPO

COUNTED = {
    f"ray_{meters.SLICES}_total": {"run", "outcome"},
    f"ray_{meters.ERRORS}_total": {"run", "code"},
    f"ray_{meters.BYTES}_total": {"run"},
    f"ray_{meters.STAGE_MS}_bucket": {"run", "stage", "le"},
}
OF_RAY = {"ray_node_gpus_utilization", "ray_node_cpu_utilization"}
EVERYWHERE = {"NodeAddress"}  # labels that Ray puts on every sample


def dashboard() -> dict:
    return json.loads((REPO / "cluster/grafana.json").read_text())


def test_every_metric_and_label_exists() -> None:
    asked = set()
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            names = set(re.findall(r"ray_\w+", expression))
            assert names <= COUNTED.keys() | OF_RAY, expression
            asked |= names
            tags = set().union(*(COUNTED.get(name, set()) for name in names)) | EVERYWHERE
            for by in re.findall(r"by \(([^)]*)\)", expression):
                assert set(by.split(", ")) <= tags, expression
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= tags, target
    assert asked == COUNTED.keys() | OF_RAY


def test_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in panels)
    ]
    for one, other in itertools.combinations(cells, 2):
        assert not one & other
    assert max(x for cell in cells for x, _ in cell) < 24
