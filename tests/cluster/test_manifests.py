"""cluster/kuberay and cluster/aws.yaml: valid, of one image, and of what the code really takes."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from cctmn.cli import cli
from tests.cluster.conftest import cluster_spec, documents
from tests.conftest import REPO

MANIFESTS = documents()
RAY = {name: m for name, m in MANIFESTS.items() if m["apiVersion"] == "ray.io/v1"}
JOBS = {name: m for name, m in RAY.items() if m["kind"] == "RayJob"}
COMMANDS = {
    "jobs/score.py": ["score"],
    "jobs/train_detector.py": ["train", "detector"],
    "jobs/train_classifier.py": ["train", "classifier"],
}
KUBERNETES = "1.33"
AWS = REPO / "cluster/aws.yaml"


def pinned(package: str) -> str:
    """Version in constraints.txt."""
    result = re.search(
        rf"^{package}==([^ ]+)", (REPO / "constraints.txt").read_text(), re.MULTILINE
    )
    assert result
    return result[1]


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates by group."""
    spec = cluster_spec(manifest)
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]} | groups


def problems(manifest: dict[str, Any], crds: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(crds[manifest["kind"]])
    return [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(manifest)]


@pytest.mark.parametrize("name", RAY)
def test_ray_manifests_fit_kuberays_schemas(name: str, crds: dict[str, Any]) -> None:
    assert problems(RAY[name], crds) == []


def test_unknown_fields_are_refused(crds: dict[str, Any]) -> None:
    """The check above would see a slip of the pen, at any depth."""
    good = JOBS["rayjob-score.yaml"]
    for path, wrong in (
        (["spec"], "entryPoint"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "minReplica"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"], "restartpolicy"),
    ):
        bad = copy.deepcopy(good)
        place: Any = bad
        for key in path:
            place = place[key]
        place[wrong] = 1
        assert any(wrong in problem for problem in problems(bad, crds)), wrong


@pytest.mark.parametrize("name", sorted(MANIFESTS.keys() - RAY.keys()))
def test_the_other_manifests_fit_kubernetes_own_schemas(name: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(MANIFESTS[name] | {"specs": {}}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY)
def test_pod_templates_fit_kubernetes_own_schemas(name: str) -> None:
    for template in pods(RAY[name]).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_entry_points_and_their_options_exist(name: str) -> None:
    python, script, *words = shlex.split(JOBS[name]["spec"]["entrypoint"])
    assert python == "python"
    assert (REPO / script).is_file()
    command: click.Command = cli
    for part in COMMANDS[script]:
        assert isinstance(command, click.Group)
        command = command.commands[part]
    context = command.make_context(script, words)  # parses, and runs nothing
    sets = context.params["sets"]
    from cctmn import config

    kinds = {"score": config.ScoreConfig, "detector": config.DetectorConfig}
    config.load(kinds.get(COMMANDS[script][-1], config.ClassifierConfig), sets=list(sets))
    if preset := context.params.get("preset"):
        assert preset in config.presets(COMMANDS[script][-1])


@pytest.mark.parametrize("name", RAY)
def test_worker_groups_are_as_documented(name: str) -> None:
    manifest = RAY[name]
    spec = cluster_spec(manifest)
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups["gpu"]["minReplicas"] == groups["gpu"]["replicas"] == 0
    for group, template in pods(manifest).items():
        pod = template["spec"]
        [container] = pod["containers"]
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (group == "gpu")
        assert ("tolerations" in pod) == (group == "gpu")
        assert container["image"].endswith("-cuda" if group == "gpu" else "-cpu")
        [shm] = pod["volumes"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert container["volumeMounts"] == [{"name": shm["name"], "mountPath": "/dev/shm"}]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == MANIFESTS["serviceaccount.yaml"]["metadata"]["name"]
        assert pod["restartPolicy"] == "Never"
    if manifest["kind"] == "RayJob":
        job = manifest["spec"]
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0
        assert job["backoffLimit"] >= 2
        gpus = sum(g["maxReplicas"] for n, g in groups.items() if n == "gpu")
        workers = re.search(r"(actors|hardware\.workers)=(\d+)", job["entrypoint"])
        assert workers
        assert int(workers[2]) == gpus


def images() -> set[str]:
    result = {
        container["image"]
        for manifest in RAY.values()
        for template in pods(manifest).values()
        for container in template["spec"]["containers"]
    }
    return result | {yaml.safe_load(AWS.read_text())["docker"]["image"]}


def test_one_image_of_this_ray_and_python_everywhere() -> None:
    names = {image.rsplit("-", 1)[0] for image in images()}
    [name] = names
    from cctmn import __version__

    tag = name.rsplit(":", 1)[1]
    assert tag == f"{__version__}-ray{pinned('ray')}-py311"
    dockerfile = (REPO / "cluster/Dockerfile").read_text()
    assert f"ARG RAY_VERSION={pinned('ray')}\n" in dockerfile
    assert "ARG PYTHON_TAG=py311\n" in dockerfile
    for kind in ("cpu", "cuda"):
        assert f"cctmn:{tag}-{kind} " in dockerfile


def test_the_dockerfile_copies_existing_files_and_is_not_root() -> None:
    lines = (REPO / "cluster/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    for step in steps:
        if step[0] == "COPY":
            assert step[1].startswith("--chown=ray:")
            assert all((REPO / source).exists() for source in step[2:-1]), step
    allowed = set((REPO / ".dockerignore").read_text().split("\n"))
    copied = {source for step in steps if step[0] == "COPY" for source in step[2:-1]}
    assert {f"!{source}" for source in copied} <= allowed
    assert [step[1] for step in steps if step[0] == "USER"][-1] == "ray"
    assert not [step for step in steps if "latest" in " ".join(step)]
    assert "--require-hashes -r constraints.txt" in " ".join(lines)
    assert pinned("aiohttp-cors")  # the dashboard's: the pins include those of the extra `cluster`


def test_aws_fits_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    good = yaml.safe_load(AWS.read_text())
    ready = prepare_config(copy.deepcopy(good))
    validate_config(ready)
    assert ready["max_workers"] == good["max_workers"] > 2
    assert ready["setup_commands"] == []
    types = good["available_node_types"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    most = sum(t["max_workers"] for name, t in types.items() if name != "head")
    assert most == good["max_workers"]
    bad = copy.deepcopy(good)
    bad["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(bad))


def test_no_file_holds_a_secret() -> None:
    secret = re.compile(r"AKIA[0-9A-Z]{16}|aws_secret|password\s*[:=]|token\s*[:=]\s*\S{16,}", re.I)
    for path in sorted((REPO / "cluster").rglob("*")):
        if path.is_file():
            assert not secret.search(path.read_text()), path
    assert not [m for m in MANIFESTS.values() if m["kind"] == "Secret"]


def test_placeholders_are_in_capitals() -> None:
    """Every bucket, region, role and registry, and nothing that would work by accident."""
    texts = [p.read_text() for p in Path(REPO / "cluster").rglob("*.yaml")]
    buckets = set(itertools.chain(*(re.findall(r"s3://([^/\s]+)", text) for text in texts)))
    assert buckets == {"YOUR-BUCKET"}
    assert {image.split("/")[0] for image in images()} == {"YOUR-REGISTRY"}
