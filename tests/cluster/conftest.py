"""The files of cluster/, parsed once, and schemas to hold them against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO

KUBERAY = REPO / "cluster/kuberay"


def documents() -> dict[str, dict[str, Any]]:
    """Every manifest by its file's name."""
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(KUBERAY.glob("*.yaml"))}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster of a RayJob or RayCluster."""
    spec = manifest["spec"]
    return dict(spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec)


def closed(schema: Any) -> Any:
    """A schema of Kubernetes that refuses fields it does not name, and takes 1 for "1"."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(value) for name, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not keeps and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


@pytest.fixture(scope="session")
def crds(shared: Path) -> dict[str, Any]:
    """KubeRay's schemas of ray.io/v1, by kind."""
    result = {}
    for file in ("ray.io_rayjobs.yaml", "ray.io_rayclusters.yaml"):
        crd = yaml.load((shared / "crd" / file).read_text(), yaml.CSafeLoader)
        [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        result[crd["spec"]["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return result
