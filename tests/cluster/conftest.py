"""The manifests of cluster/ as `kubectl apply -k` renders them, and schemas to check them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO

OVERLAYS = REPO / "cluster/kuberay/overlays"
NAMES = sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))
JOBS = [name for name in NAMES if name != "dev"]


def kubectl() -> str:
    """The command kubectl of this environment or machine; without one the test is skipped."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("kubectl", path=path)
    if found is None:
        pytest.skip("there is no kubectl to render the manifests of cluster/kuberay")
    return found


@cache
def render(folder: Path) -> list[dict[str, Any]]:
    """The manifests of a folder with a kustomization.yaml."""
    command = [kubectl(), "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return list(yaml.safe_load_all(result.stdout))


def manifest(name: str, kind: str) -> dict[str, Any]:
    """The one manifest of a kind in an overlay."""
    [found] = [document for document in render(OVERLAYS / name) if document["kind"] == kind]
    return found


def ray_manifest(name: str) -> dict[str, Any]:
    """The RayJob or RayCluster of an overlay."""
    return manifest(name, "RayJob" if name in JOBS else "RayCluster")


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster of a RayJob or RayCluster."""
    spec = manifest["spec"]
    return dict(spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec)


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates of a Ray cluster by group."""
    spec = cluster_spec(manifest)
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]} | groups


def all_pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates of a Ray cluster by group, and that of the pod that submits a job."""
    if manifest["kind"] == "RayCluster":
        return pods(manifest)
    return pods(manifest) | {"submitter": manifest["spec"]["submitterPodTemplate"]}


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
