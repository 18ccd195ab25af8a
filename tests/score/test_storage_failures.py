"""Storage that fails for one object, or gives another than was listed: the others are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cctmn.config import ScoreConfig
from cctmn.errors import StoreError
from cctmn.score import run, scoring
from cctmn.score.run import ScoreJob
from tests.conftest import RecordingReporter, S3Server
from tests.makers import png, stand_in, zipped
from tests.score.conftest import predictions

BUCKET = "failing"
SLOW_DOWN = ("503 Slow Down", "SlowDown")


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[S3Server]:
    """A bucket of four images and a zip of three."""
    client = s3.bucket(BUCKET)
    for n in range(4):
        s3.upload(BUCKET, f"{n}.png", png(n))
    s3.upload(BUCKET, "z.zip", zipped({f"m{n}.png": png(n + 10) for n in range(3)}))
    yield s3
    s3.fault = None
    for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    settings = ScoreConfig(actors=1, max_error_rate=1.0)
    return ScoreJob(
        [f"s3://{BUCKET}"], out=str(tmp_path / "out"), source=stand_in(), settings=settings
    )


def refuse(
    *keys: str, when: Callable[[dict[str, Any]], bool] = lambda environ: True
) -> Callable[[dict[str, Any]], tuple[str, str] | None]:
    paths = {f"/{BUCKET}/{key}" for key in keys}
    return lambda environ: SLOW_DOWN if environ["PATH_INFO"] in paths and when(environ) else None


def at_execution(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Let something happen once, between the index and the first read of a slice."""
    execute = scoring.pipeline.execute

    def execute_after(todo: str, **rest: Any) -> Iterator[Any]:
        monkeypatch.setattr(scoring.pipeline, "execute", execute)
        happens()
        return execute(todo, **rest)

    monkeypatch.setattr(scoring.pipeline, "execute", execute_after)


def codes(job: ScoreJob) -> dict[str, str]:
    return {name: row["error_code"] for name, row in rows(job).items()}


def rows(job: ScoreJob) -> dict[str, dict[str, Any]]:
    return {
        name.removesuffix("::0").removesuffix("::"): row
        for name, row in predictions(Path(job.out)).items()
    }


def test_an_object_that_always_fails_is_a_row_and_is_read_again_at_the_next_run(
    bucket: S3Server, job: ScoreJob, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        bucket.fault = refuse("2.png", "z.zip")

    at_execution(monkeypatch, fails)
    summary = run.score(job, address=cluster)
    assert summary.counts.codes == {"storage_failed": 2}  # the zip as a whole and the image
    assert (summary.counts.ok, summary.counts.pending) == (3, 0)
    bucket.fault = None
    summary = run.score(job, address=cluster)
    assert (summary.counts.ok, summary.counts.inventory) == (7, 7)
    assert summary.counts.codes == {}


def test_an_object_that_fails_for_the_index_does_not_end_it(
    bucket: S3Server, job: ScoreJob, cluster: str
) -> None:
    bucket.fault = refuse("2.png", "z.zip")
    summary = run.score(job, address=cluster)
    assert (summary.counts.ok, summary.counts.codes) == (3, {"storage_failed": 2})
    bucket.fault = None
    summary = run.score(job, address=cluster)
    assert (summary.counts.ok, summary.counts.error, summary.counts.inventory) == (7, 0, 7)


def test_an_object_that_fails_for_a_while_is_read_once_more_in_the_same_run(
    bucket: S3Server, job: ScoreJob, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def early(environ: dict[str, Any]) -> bool:
        nonlocal reads
        reads += 1
        return reads <= 2  # both attempts of the first read

    def fails() -> None:
        bucket.fault = refuse("2.png", when=early)

    at_execution(monkeypatch, fails)
    reporter = RecordingReporter()
    summary = run.score(job, address=cluster, report=reporter)
    assert (summary.counts.ok, summary.counts.error) == (7, 0)
    assert "1 slices could not be read; reading them once more" in reporter.lines


def test_storage_that_is_down_ends_the_run(
    bucket: S3Server, job: ScoreJob, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies() -> None:
        bucket.fault = lambda environ: SLOW_DOWN

    at_execution(monkeypatch, dies)
    with pytest.raises(StoreError, match="run the same command again to resume"):
        run.score(job, address=cluster)
    bucket.fault = None
    assert run.score(job, address=cluster).counts.ok == 7


def test_objects_that_are_replaced_after_the_index_are_scored_as_they_are_now(
    bucket: S3Server, job: ScoreJob, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced() -> None:
        bucket.upload(BUCKET, "1.png", png(21, side=96))
        bucket.upload(BUCKET, "3.png", png(23)[:-9])  # shorter than what was listed
        bucket.upload(BUCKET, "z.zip", zipped({"m0.png": png(20), "new.png": png(22)}))

    at_execution(monkeypatch, replaced)
    summary = run.score(job, address=cluster)
    assert codes(job) == {
        "0.png": "",
        "1.png": "",
        "2.png": "",
        "3.png": codes(job)["3.png"],
        "z.zip::m0.png": "",
        "z.zip::new.png": "",
    }
    assert codes(job)["3.png"] in ("truncated", "corrupt")
    assert rows(job)["1.png"]["rows"] == 96
    assert summary.counts.pending == 0
    fresh = dataclasses.replace(job, out=job.out + "-fresh")
    run.score(fresh, address=cluster)
    assert codes(fresh) == codes(job)


def test_a_local_file_that_is_replaced_after_the_index_is_scored_as_it_is_now(
    tmp_path: Path, job: ScoreJob, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(3):
        (tmp_path / "in" / f"{n}.png").write_bytes(png(n))
    job = dataclasses.replace(job, inputs=[str(tmp_path / "in")])
    at_execution(monkeypatch, lambda: (tmp_path / "in/1.png").write_bytes(png(5, side=96)))
    assert run.score(job, address=cluster).counts.ok == 3
    assert rows(job)["1.png"]["rows"] == 96
