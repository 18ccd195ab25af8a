"""A real Ray cluster for a module, with the S3 server in its environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cctmn import runtime


@pytest.fixture(scope="module")
def cluster(s3: object) -> Iterator[None]:
    """The test process is connected to it, so that runs share worker processes."""
    with runtime.session():
        yield
