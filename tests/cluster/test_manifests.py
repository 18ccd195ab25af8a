"""cluster/kuberay: the rendered manifests are valid, and ask for what the code really takes."""

from __future__ import annotations

import copy
import itertools
import os
import re
import shlex
import shutil
import subprocess
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from cctmn import __version__, config
from cctmn.cli import cli
from tests.cluster.conftest import (
    JOBS,
    NAMES,
    OVERLAYS,
    all_pods,
    cluster_spec,
    manifest,
    pods,
    ray_manifest,
    render,
)
from tests.conftest import REPO

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


def problems(manifest: dict[str, Any], crds: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(crds[manifest["kind"]])
    return [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(manifest)]


def groups(name: str) -> dict[str, dict[str, Any]]:
    """Worker groups of an overlay by name."""
    return {g["groupName"]: g for g in cluster_spec(ray_manifest(name))["workerGroupSpecs"]}


@pytest.mark.parametrize("name", NAMES)
def test_ray_manifests_fit_kuberays_schemas(name: str, crds: dict[str, Any]) -> None:
    assert problems(ray_manifest(name), crds) == []


def test_unknown_fields_are_refused(crds: dict[str, Any]) -> None:
    """The check above would see a slip of the pen, at any depth."""
    for path, wrong in (
        (["spec"], "entryPoint"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "minReplica"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"], "restartpolicy"),
    ):
        bad = copy.deepcopy(ray_manifest("score"))
        place: Any = bad
        for key in path:
            place = place[key]
        place[wrong] = 1
        assert any(wrong in problem for problem in problems(bad, crds)), wrong


@pytest.mark.parametrize("name", NAMES)
def test_the_other_manifests_fit_kubernetes_own_schemas(name: str) -> None:
    others = [m for m in render(OVERLAYS / name) if m["apiVersion"] != "ray.io/v1"]
    assert sorted(m["kind"] for m in others) == ["NetworkPolicy", "ServiceAccount"]
    for other in others:
        kubernetes_validate.validate(other, KUBERNETES, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(other | {"specs": {}}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_pod_templates_fit_kubernetes_own_schemas(name: str) -> None:
    for template in all_pods(ray_manifest(name)).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_entry_points_and_their_options_exist(name: str) -> None:
    python, script, *words = shlex.split(ray_manifest(name)["spec"]["entrypoint"])
    assert python == "python"
    assert (REPO / script).is_file()
    command: click.Command = cli
    for part in COMMANDS[script]:
        assert isinstance(command, click.Group)
        command = command.commands[part]
    context = command.make_context(script, words)  # parses, and runs nothing
    kinds = {"score": config.ScoreConfig, "detector": config.DetectorConfig}
    kind = kinds.get(COMMANDS[script][-1], config.ClassifierConfig)
    config.load(kind, sets=list(context.params["sets"]))
    if preset := context.params.get("preset"):
        assert preset in config.presets(COMMANDS[script][-1])


@pytest.mark.parametrize("name", NAMES)
def test_clusters_have_rays_version_and_a_token(name: str) -> None:
    spec = cluster_spec(ray_manifest(name))
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("name", NAMES)
def test_the_head_does_no_work(name: str) -> None:
    head = cluster_spec(ray_manifest(name))["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


@pytest.mark.parametrize("name", NAMES)
def test_only_gpu_workers_ask_for_gpus_and_have_cuda(name: str) -> None:
    assert groups(name)["gpu"]["minReplicas"] == 0
    for group, template in pods(ray_manifest(name)).items():
        [container] = template["spec"]["containers"]
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (group == "gpu")
        assert container["image"].endswith("-cuda" if group == "gpu" else "-cpu")
        taints = {taint["key"] for taint in template["spec"].get("tolerations", [])}
        assert ("nvidia.com/gpu" in taints) == (group == "gpu")


@pytest.mark.parametrize("name", NAMES)
def test_pods_have_one_service_account_and_are_never_restarted(name: str) -> None:
    account = manifest(name, "ServiceAccount")["metadata"]["name"]
    for template in pods(ray_manifest(name)).values():
        assert template["spec"]["serviceAccountName"] == account
        assert template["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", NAMES)
def test_what_pods_write_goes_to_volumes_with_a_limit(name: str) -> None:
    for group, template in all_pods(ray_manifest(name)).items():
        pod = template["spec"]
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
        names = {volume["name"]: volume["emptyDir"].get("medium") for volume in pod["volumes"]}
        paths = {
            mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]
        }
        assert set(paths.values()) == set(names)
        assert "/tmp" in paths
        if group != "submitter":
            assert names[paths["/dev/shm"]] == "Memory"


@pytest.mark.parametrize("name", JOBS)
def test_jobs_end_and_their_clusters_with_them(name: str) -> None:
    job = ray_manifest(name)["spec"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["activeDeadlineSeconds"] >= 24 * 3600
    assert job["backoffLimit"] >= 2
    assert "RayCluster" not in {m["kind"] for m in render(OVERLAYS / name)}


@pytest.mark.parametrize("name", JOBS)
def test_jobs_start_as_many_workers_as_there_can_be_gpus(name: str) -> None:
    gpu = groups(name)["gpu"]
    [container] = gpu["template"]["spec"]["containers"]
    gpus = gpu["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    workers = re.search(
        r"(actors|hardware\.workers)=(\d+)", ray_manifest(name)["spec"]["entrypoint"]
    )
    assert workers
    assert int(workers[2]) == gpus


@pytest.mark.parametrize("name", ["score", "train-detector", "train-classifier"])
def test_spot_is_for_workers_alone(name: str) -> None:
    for group, template in pods(ray_manifest(name)).items():
        pod = template["spec"]
        kind = "on-demand" if group == "head" else "spot"
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": kind}
        tolerated = {taint["key"] for taint in pod.get("tolerations", [])}
        assert ("spot" in tolerated) == (group != "head")


def test_one_pod_takes_a_node_of_eight_gpus() -> None:
    [container] = groups("score-on-premises")["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert groups("score-on-premises")["gpu"]["maxReplicas"] == 1


def test_kueue_gets_a_cluster_of_a_fixed_size() -> None:
    job = ray_manifest("score-on-premises")
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "YOUR-QUEUE"}
    assert cluster_spec(job)["enableInTreeAutoscaling"] is False
    gpu = groups("score-on-premises")["gpu"]
    assert gpu["replicas"] == gpu["maxReplicas"]


def ports(name: str) -> set[int]:
    """Ports outside the cluster that the network policy of an overlay opens."""
    rules = manifest(name, "NetworkPolicy")["spec"]["egress"]
    return {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}


def test_pods_reach_s3_of_aws_on_the_port_of_https_alone() -> None:
    assert ports("score") == {443}


def test_pods_reach_s3_on_premises_on_its_port_with_keys_of_a_secret() -> None:
    assert ports("score-on-premises") == {443, 9000}
    for template in pods(ray_manifest("score-on-premises")).values():
        [container] = template["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "cctmn-s3"}}]


def images() -> set[str]:
    result = {
        container["image"]
        for name in NAMES
        for template in all_pods(ray_manifest(name)).values()
        for container in template["spec"]["containers"]
    }
    return result | {yaml.safe_load(AWS.read_text())["docker"]["image"]}


def test_one_image_of_this_ray_and_python_everywhere() -> None:
    [name] = {image.rsplit("-", 1)[0] for image in images()}
    tag = name.rsplit(":", 1)[1]
    assert tag == f"{__version__}-ray{pinned('ray')}-py311"
    dockerfile = (REPO / "cluster/Dockerfile").read_text()
    assert f"ARG BASE=rayproject/ray:{pinned('ray')}-py311-cpu\n" in dockerfile
    for kind in ("cpu", "cuda"):
        assert f"cctmn:{tag}-{kind} " in dockerfile


def test_each_line_of_the_cluster_stands_once() -> None:
    """Components change the cluster; none of them repeats it."""
    texts = [path.read_text() for path in OVERLAYS.parent.rglob("*.yaml")]
    for fact in ("rayVersion:", "seccompProfile:", "readOnlyRootFilesystem:", "backoffLimit: 3"):
        assert sum(text.count(fact) for text in texts) == 1, fact


def test_no_file_holds_a_secret() -> None:
    token = r"token\s*[:=]\s*(?![~/])\S{16,}"  # not the path of one
    secret = re.compile(rf"AKIA[0-9A-Z]{{16}}|aws_secret|password\s*[:=]|{token}", re.IGNORECASE)
    for path in sorted((REPO / "cluster").rglob("*")):
        if path.is_file():
            assert not secret.search(path.read_text()), path
    for name in NAMES:
        assert not [m for m in render(OVERLAYS / name) if m["kind"] == "Secret"]


def test_placeholders_are_in_capitals() -> None:
    """Every bucket, region, role and registry, and nothing that would work by accident."""
    texts = [path.read_text() for path in (REPO / "cluster").rglob("*.yaml")]
    buckets = set(itertools.chain(*(re.findall(r"s3://([^/\s]+)", text) for text in texts)))
    assert buckets == {"YOUR-BUCKET"}
    assert {image.split("/")[0] for image in images()} == {"YOUR-REGISTRY"}


def test_the_apptainer_recipe_takes_the_image_of_the_dockerfile() -> None:
    recipe = (REPO / "cluster/apptainer/cctmn.def").read_text()
    image = re.search(r"^From: YOUR-REGISTRY/(\S+)$", recipe, re.MULTILINE)
    assert image is not None
    assert f"-t {image[1]} " in (REPO / "cluster/Dockerfile").read_text()


def test_the_job_script_of_slurm_is_clean() -> None:
    script = REPO / "cluster/slurm/score.sbatch"
    assert os.access(script, os.X_OK)
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
