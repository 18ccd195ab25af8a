"""cluster/aws.yaml: valid for `ray up`, with the token in the container and room for the image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import REPO

AWS = REPO / "cluster/aws.yaml"


@pytest.fixture
def aws() -> dict[str, Any]:
    return dict(yaml.safe_load(AWS.read_text()))


def test_aws_fits_rays_own_validation(aws: dict[str, Any]) -> None:
    ready = prepare_config(copy.deepcopy(aws))
    validate_config(ready)
    assert ready["max_workers"] == aws["max_workers"] > 2
    assert ready["setup_commands"] == []
    bad = aws | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(bad))


def test_the_head_stays_and_workers_are_on_spot(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in ("decode", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    most = sum(t["max_workers"] for name, t in types.items() if name != "head")
    assert most == aws["max_workers"]


def test_every_node_has_a_disk_for_the_image(aws: dict[str, Any]) -> None:
    for node in aws["available_node_types"].values():
        [disk] = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 150
        assert disk["Ebs"]["VolumeType"] == "gp3"


def test_ray_starts_a_container_that_holds_the_token(aws: dict[str, Any]) -> None:
    docker = aws["docker"]
    command = docker_start_cmds(
        user="ubuntu",
        image=docker["image"],
        mount_dict=aws["file_mounts"],
        container_name=docker["container_name"],
        user_options=docker["run_options"],
        cluster_name=aws["cluster_name"],
        home_directory="/home/ray",
        docker_cmd="docker",
    )
    [path] = aws["file_mounts"]
    assert f":{path} " in command
    assert f"--env RAY_AUTH_TOKEN_PATH={path} " in command
    assert "--env RAY_AUTH_MODE=token " in command
