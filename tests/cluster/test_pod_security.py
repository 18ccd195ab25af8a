"""Every pod fits the restricted profile of the Pod Security Standards of Kubernetes.

The profile is written down here, control by control, as https://kubernetes.io/docs/concepts/security/
pod-security-standards/ lists them for Linux, with the read-only root file system that hospitals ask
for beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import NAMES, all_pods, cluster_spec, ray_manifest

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: dict[str, Any]) -> set[str]:
    """Controls of the profile that the spec of a pod does not meet."""
    result = {name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)}
    for volume in pod.get("volumes", []):
        if not volume.keys() - {"name"} <= VOLUMES:
            result.add("volume types")
    of_pod = pod.get("securityContext", {})
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        both = of_pod | own
        if own.get("privileged"):
            result.add("privileged")
        if own.get("allowPrivilegeEscalation") is not False:
            result.add("privilege escalation")
        if both.get("runAsNonRoot") is not True:
            result.add("running as non-root")
        if both.get("runAsUser") == 0:
            result.add("running as non-root user")
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            result.add("seccomp")
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            result.add("capabilities dropped")
        if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
            result.add("capabilities added")
        if any(port.get("hostPort") for port in container.get("ports", [])):
            result.add("host ports")
        if own.get("procMount", "Default") != "Default":
            result.add("proc mount")
        if own.get("readOnlyRootFilesystem") is not True:
            result.add("read-only root file system")
    return result


@pytest.mark.parametrize("name", NAMES)
def test_every_pod_fits_the_restricted_profile(name: str) -> None:
    for group, template in all_pods(ray_manifest(name)).items():
        assert violations(template["spec"]) == set(), group


@pytest.mark.parametrize("name", NAMES)
def test_the_autoscaler_beside_the_head_fits_it_too(name: str) -> None:
    spec = cluster_spec(ray_manifest(name))
    head = copy.deepcopy(spec["headGroupSpec"]["template"]["spec"])
    autoscaler = {"name": "autoscaler"} | {
        key: spec["autoscalerOptions"][key] for key in ("securityContext", "volumeMounts")
    }
    head["containers"].append(autoscaler)
    assert violations(head) == set()
    mounts = {mount["name"] for mount in autoscaler["volumeMounts"]}
    assert mounts <= {volume["name"] for volume in head["volumes"]}


def drop_nothing(pod: dict[str, Any]) -> None:
    del pod["containers"][0]["securityContext"]["capabilities"]


def no_seccomp(pod: dict[str, Any]) -> None:
    del pod["securityContext"]["seccompProfile"]


def host_path(pod: dict[str, Any]) -> None:
    pod["volumes"].append({"name": "data", "hostPath": {"path": "/data"}})


def as_root(pod: dict[str, Any]) -> None:
    pod["containers"][0]["securityContext"]["runAsNonRoot"] = False


@pytest.mark.parametrize(
    ("change", "control"),
    [
        (drop_nothing, "capabilities dropped"),
        (no_seccomp, "seccomp"),
        (host_path, "volume types"),
        (as_root, "running as non-root"),
    ],
)
def test_a_pod_outside_the_profile_is_found(
    change: Callable[[dict[str, Any]], None], control: str
) -> None:
    pod = copy.deepcopy(all_pods(ray_manifest("score"))["head"]["spec"])
    change(pod)
    assert violations(pod) == {control}
