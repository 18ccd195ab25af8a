"""Buckets of others: public ones without a key, and those where the reader pays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn import store
from cctmn.errors import InputError
from cctmn.read.listing import list_inputs
from cctmn.score import models
from tests.commands import call
from tests.conftest import S3Server
from tests.makers import png, stand_in

PUBLIC, OWN = "public-bucket", "own-bucket"


@pytest.fixture
def requests(s3: S3Server) -> Iterator[list[dict[str, Any]]]:
    """Two buckets, and the list of the requests that the server sees."""
    seen: list[dict[str, Any]] = []
    for bucket in (PUBLIC, OWN):
        s3.bucket(bucket)
    for n in range(3):
        s3.client().put_object(Bucket=PUBLIC, Key=f"series/{n}.png", Body=png(n), ACL="public-read")
    s3.fault = lambda environ: seen.append(dict(environ))
    yield seen
    s3.fault = None
    store.set_s3_access(store.S3Access())


def to(bucket: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [request for request in requests if request["PATH_INFO"].startswith(f"/{bucket}")]


@pytest.mark.parametrize("option", ["--anonymous", "--requester-pays"])
def test_only_the_buckets_of_input_are_read_in_another_way(
    option: str,
    requests: list[dict[str, Any]],
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "open_source", lambda _, **__: stand_in())
    out = f"s3://{OWN}/{option[2:]}"
    done = call(
        "score", f"s3://{PUBLIC}/series", "-o", out, "-m", "any", option, "--address", cluster
    )
    assert done.returncode == 0, done.stderr
    others, own = to(PUBLIC, requests), to(OWN, requests)
    assert sum(request["REQUEST_METHOD"] == "GET" for request in others) > 3  # the workers too
    assert own
    assert all("HTTP_AUTHORIZATION" in request for request in own)
    assert not any("HTTP_X_AMZ_REQUEST_PAYER" in request for request in own)
    for request in others:
        assert ("HTTP_AUTHORIZATION" in request) == (option != "--anonymous")
        assert request.get("HTTP_X_AMZ_REQUEST_PAYER") == (
            "requester" if option == "--requester-pays" else None
        )


@pytest.mark.usefixtures("requests")
def test_a_manifest_of_s5cmd_is_a_list_of_patterns(tmp_path: Path) -> None:
    manifest = tmp_path / "idc.s5cmd"
    manifest.write_text(
        "# To download, install s5cmd\n"
        "\n"
        f"cp --show-progress s3://{PUBLIC}/series/* ./series\n"
        f"cp 's3://{PUBLIC}/series/1.png' .\n"
        f"cp s3://{PUBLIC}/none.png .\n"
    )
    found = {info.uri: info.error_code for info in list_inputs([str(manifest)])}
    names = [f"s3://{PUBLIC}/series/{n}.png" for n in range(3)]
    assert found == dict.fromkeys(names, "") | {f"s3://{PUBLIC}/none.png": "not_found"}
    manifest.write_text("cp nothing .\n")
    with pytest.raises(InputError, match=r"idc\.s5cmd line 1: no s3:// source; write cp s3://"):
        list(list_inputs([str(manifest)]))
