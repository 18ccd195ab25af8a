"""Device and precision of a run: chosen once, recorded, and never mixed in one OUT."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cctmn import numerics, store
from cctmn.config import ScoreConfig
from cctmn.errors import ModelError, PreflightError, ResumeError
from cctmn.model import inference
from cctmn.numerics import CPU, CUDA, Numerics
from cctmn.runtime import Resources
from cctmn.score import begun, models, run
from cctmn.score.begun import Begun
from cctmn.score.job import ScoreJob
from tests.commands import call, one_line
from tests.conftest import RecordingReporter
from tests.makers import png, stand_in
from tests.score.conftest import manifest

HERE, THERE = Resources(2, 0, started_here=True), Resources(2, 1)


def job(slices: Path, out: Path, *, precision: str = "float32", **settings: Any) -> ScoreJob:
    source = dataclasses.replace(stand_in(), precision=precision)
    chosen = ScoreConfig(actors=1, precision=precision, **settings)
    return ScoreJob([str(slices)], out=str(out), source=source, settings=chosen)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    for n in range(5):
        (folder / f"{n}.png").write_bytes(png(n))
    return folder


@pytest.fixture(scope="module")
def done(slices: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that left the device open, on a cluster without a GPU."""
    out = tmp_path_factory.mktemp("out") / "done"
    run.score(dataclasses.replace(job(slices, out), limit=3), address=cluster)
    return out


def without_record(out: Path) -> None:
    """Make a folder look as if a version had written it that did not record its numerics."""
    path = out / "private/run.json"
    document = json.loads(path.read_text())
    del document["numerics"], document["identity"]["device"], document["identity"]["precision"]
    path.write_text(json.dumps(document))
    for file in (out / "predictions").iterdir():
        table = pq.read_table(file)
        kept = {k: v for k, v in table.schema.metadata.items() if k == b"cctmn.classes"}
        pq.write_table(table.replace_schema_metadata(kept), out / "predictions" / "older.parquet")
        file.unlink()


def test_auto_is_float32_on_every_device() -> None:
    assert numerics.precision_of("auto") == "float32"
    assert numerics.precision_of("tf32") == "tf32"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_reaches_the_network(
    fresh_model: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(inference, "Predictor", lambda net, **options: asked.append(options))
    source = models.open_source(str(fresh_model), precision=precision)
    source.load(False)
    assert (source.precision, asked[0]["precision"]) == (precision, precision)


def test_tf32_on_cpus_is_refused(slices: Path, tmp_path: Path) -> None:
    words = ["score", slices, "-o", tmp_path / "out", "-m", "cctmn:demo", "--device", "cpu"]
    done = call(*words, "--set", "precision=tf32", "-q")
    one_line(done, code=2, message="only a GPU computes in tf32")


def test_a_scorer_without_a_gpu_never_takes_one(
    fresh_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scorer: Any = models.open_source(str(fresh_model)).load(False)
    assert scorer._predictor._device.type == "cpu"
    assert scorer.device_name == numerics.processor_name()


def test_numerics_are_part_of_the_identity(tmp_path: Path) -> None:
    plain = dataclasses.replace(job(tmp_path, tmp_path), device=CPU)
    other = dataclasses.replace(job(tmp_path, tmp_path, precision="bfloat16"), device=CUDA)
    assert other.identity.differences(plain.identity) == [
        "device: cpu there, cuda here",
        "precision: float32 there, bfloat16 here",
    ]


def test_an_open_device_is_that_of_the_folder() -> None:
    for device in (CPU, CUDA):
        held = Begun(numerics=Numerics(device, "float32"))
        assert begun.device_of(held, gpus=-1, precision="float32", name="out") == device
    assert begun.device_of(Begun(), gpus=-1, precision="float32", name="out") == ""


@pytest.mark.parametrize(
    ("gpus", "precision", "message"),
    [
        (-1, "bfloat16", r"float32 on CPUs.*bfloat16 on CPUs; .*new OUT.*--set precision=float32"),
        (1, "float32", r"float32 on CPUs.*float32 on GPUs; .*new OUT.*--device cpu"),
        (1, "tf32", r"--set precision=float32 --device cpu"),
    ],
)
def test_another_precision_or_device_is_refused(gpus: float, precision: str, message: str) -> None:
    held = Begun(numerics=Numerics(CPU, "float32"))
    with pytest.raises(ResumeError, match=message):
        begun.device_of(held, gpus=gpus, precision=precision, name="out")


def test_a_folder_of_gpus_is_not_resumed_on_a_machine_without_one(
    reporter: RecordingReporter,
) -> None:
    with pytest.raises(PreflightError, match="computed on GPUs, and Ray finds none"):
        begun.gpus_per_scorer(ScoreConfig(), device=CUDA, available=HERE, report=reporter)
    elsewhere = dataclasses.replace(HERE, started_here=False)  # its nodes may start on demand
    settings = ScoreConfig()
    gpus = begun.gpus_per_scorer(settings, device=CUDA, available=elsewhere, report=reporter)
    assert gpus == 1


def test_a_folder_of_cpus_leaves_the_gpus_of_a_cluster_alone(reporter: RecordingReporter) -> None:
    gpus = begun.gpus_per_scorer(ScoreConfig(), device=CPU, available=THERE, report=reporter)
    assert gpus == 0
    assert reporter.lines == [
        "OUT was begun on CPUs, so the GPUs are not used; a new OUT would use them"
    ]


def test_a_new_folder_takes_the_gpus_of_the_cluster(reporter: RecordingReporter) -> None:
    gpus = begun.gpus_per_scorer(ScoreConfig(), device="", available=THERE, report=reporter)
    assert (gpus, reporter.lines) == (1, [])


def test_manifest_and_files_record_device_and_precision(done: Path) -> None:
    held, name = Numerics(CPU, "float32"), numerics.processor_name()
    assert manifest(done)["numerics"] == held.as_json() | {"devices": {name: 3}}
    assert manifest(done)["last_run"]["scorers"] == {name: 1}
    assert Numerics.read(manifest(done)["identity"]) == held
    for file in (done / "predictions").iterdir():
        metadata = pq.read_schema(file).metadata
        assert Numerics.of_file(metadata) == held
        assert numerics.device_name_of_file(metadata) == name


def test_a_resume_with_another_precision_or_device_changes_nothing(
    done: Path, slices: Path
) -> None:
    before = (done / "private/run.json").read_text()
    for changes in ({"precision": "bfloat16"}, {"gpus": 1.0}):
        with pytest.raises(ResumeError, match="holds scores in float32 on CPUs"):
            run.score(job(slices, done, **changes))
    assert (done / "private/run.json").read_text() == before


def test_a_dry_run_shows_device_and_precision(done: Path, slices: Path, tmp_path: Path) -> None:
    shown = call("score", slices, "-o", done, "--dry-run", "-q").stdout.splitlines()
    assert shown[1] == "  float32 on CPUs"
    new = call("score", slices, "-o", tmp_path, "--dry-run", "-q").stdout.splitlines()
    assert new[1] == "  float32 on GPUs if the cluster has any, else on CPUs"
    other = call("score", slices, "-o", done, "--dry-run", "-q", "--set", "precision=bfloat16")
    one_line(other, code=2, message="use a new OUT, or give --set precision=float32")


def test_files_tell_the_numerics_if_run_json_is_lost(done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    (out / "private/run.json").unlink()
    assert begun.read(store.to_uri(str(out))) == Begun(numerics=Numerics(CPU, "float32"))


def test_a_folder_without_a_row_is_bound_to_nothing(done: Path, tmp_path: Path) -> None:
    """Such as that of a job whose GPU could not be used."""
    out = shutil.copytree(done, tmp_path / "out")
    for file in (out / "predictions").iterdir():
        file.unlink()
    assert begun.read(store.to_uri(str(out))) == Begun()


def test_the_device_is_reported_once(
    slices: Path, cluster: str, tmp_path: Path, reporter: RecordingReporter
) -> None:
    settings = {"block_rows": 2}
    run.score(job(slices, tmp_path / "out", **settings), address=cluster, report=reporter)
    lines = [line for line in reporter.lines if line.startswith("scoring on")]
    assert lines == [f"scoring on 1 x {numerics.processor_name()}, float32"]


def test_an_older_folder_is_resumed_in_float32_and_then_keeps_its_device(
    slices: Path, cluster: str, tmp_path: Path, reporter: RecordingReporter
) -> None:
    out = tmp_path / "out"
    run.score(dataclasses.replace(job(slices, out), limit=2), address=cluster)
    without_record(out)
    with pytest.raises(ResumeError, match="computed in float32 only"):
        run.score(job(slices, out, precision="bfloat16"))
    run.score(job(slices, out), address=cluster, report=reporter)
    assert any("did not record" in line for line in reporter.lines)
    name = numerics.processor_name()
    assert manifest(out)["numerics"]["devices"] == {name: 3, "not recorded": 2}
    assert "device" not in manifest(out)["identity"]
    with pytest.raises(ResumeError, match="holds scores in float32 on CPUs"):
        run.score(job(slices, out, gpus=1.0))


@pytest.fixture
def pretended_gpu(no_ray: None) -> Iterator[None]:
    """A Ray that believes to have a GPU, which torch cannot use."""
    import ray

    ray.init(num_cpus=3, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_torch_cannot_use_stops_the_job(
    pretended_gpu: None, slices: Path, fresh_model: Path, tmp_path: Path
) -> None:
    source = models.open_source(str(fresh_model))
    with pytest.raises(ModelError, match="given a GPU that PyTorch cannot use"):
        run.score(ScoreJob([str(slices)], out=str(tmp_path / "out"), source=source))
    on_cpus = job(slices, tmp_path / "out", gpus=0.0)
    assert run.score(on_cpus).counts.ok == 5  # no row bound the folder to GPUs


@pytest.mark.slow
@pytest.mark.ray
def test_scores_of_a_gpu_are_not_resumed_on_cpus(
    pretended_gpu: None, slices: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run.score(dataclasses.replace(job(slices, out), limit=2))
    assert manifest(out)["numerics"]["device"] == CUDA
    with pytest.raises(ResumeError, match=r"--device gpu"):
        run.score(job(slices, out, gpus=0.0))
    assert run.score(job(slices, out)).counts.ok == 5
