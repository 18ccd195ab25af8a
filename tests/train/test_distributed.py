"""Both stages on a real Ray: workers, storage, kills, and what is refused."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cctmn import store, tables
from cctmn.config import ClassifierConfig, DetectorConfig, Hardware, Optim, ScoreConfig
from cctmn.contract import InputContract
from cctmn.data.lesions import open_lesions
from cctmn.errors import ConfigError, DataError, ModelError, ResumeError
from cctmn.model import checkpoint
from cctmn.model.card import read_card
from cctmn.score import models
from cctmn.score import run as score
from cctmn.train import distributed, loop, run
from cctmn.train.datasets import Data
from cctmn.train.tasks import DetectorTask
from tests.processes import end_with_the_test_run
from tests.train.small import Kept, quiet_detector, small_card, write_lesions, write_slices

pytestmark = pytest.mark.slow

TIMEOUT_S = 300
HARDWARE = Hardware(workers=1, threads=1, checkpoint_s=0)
DETECTOR = DetectorConfig(optim=Optim(epochs=2, lr=1e-3, batch_size=2), hardware=HARDWARE)
CLASSIFIER = ClassifierConfig(
    variant="s",
    ranked=32,
    hidden=16,
    optim=Optim(epochs=3, lr=1e-3, batch_size=4),
    hardware=HARDWARE,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled slices and an untrained detector."""
    folder = tmp_path_factory.mktemp("made")
    write_lesions(folder / "lesions", count=6, seed=1)
    write_lesions(folder / "lesions-valid", count=2, seed=2)
    write_lesions(folder / "some-empty", count=6, seed=3, empty=(1, 4))
    write_slices(folder / "slices", count=9, seed=1)
    write_slices(folder / "slices-valid", count=3, seed=2)
    # one that reports no lesion: the masks of 128 lesions take longer than all the rest
    checkpoint.save(quiet_detector(), folder / "detector", card=small_card())
    return folder


def lesions_of(made: Path) -> dict[str, Any]:
    return {
        "data": Data(str(made / "lesions")),
        "valid": Data(str(made / "lesions-valid")),
        "model": str(made / "detector"),
    }


def slices_of(made: Path, *, model: Path | str) -> dict[str, Any]:
    return {
        "data": Data(str(made / "slices"), str(made / "slices" / "split.txt")),
        "valid": Data(str(made / "slices-valid")),
        "model": str(model),
    }


def table(place: Path | str) -> list[dict[str, float]]:
    text = store.read_all(store.to_uri(str(place))).decode()
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(text.splitlines())]


def figures(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Without the times; as text, for nan is not equal to itself."""
    return [{k: str(v) for k, v in row.items() if not k.endswith("_s")} for row in rows]


def spec_of(made: Path, out: Path, *, config: DetectorConfig) -> distributed.Spec:
    samples = open_lesions(str(made / "some-empty")).samples
    start = checkpoint.load(made / "detector")
    checkpoint.save(start.net, out / "initial", card=start.card)
    return distributed.Spec(config, samples, samples[:2], out.as_uri(), start.card)


@pytest.fixture(scope="module")
def trained(cluster: str, made: Path, tmp_path_factory: pytest.TempPathFactory) -> run.TrainJob:
    """A finished run of stage 2."""
    out = tmp_path_factory.mktemp("trained") / "out"
    job = run.TrainJob(CLASSIFIER, out=str(out), **slices_of(made, model=made / "detector"))
    run.train(job)
    return job


def test_two_workers_learn_what_one_learns(cluster: str, made: Path, tmp_path: Path) -> None:
    """The same global batch, and in it slices without a lesion that leave one worker none.

    The one is the loop in this process; other tests train with one worker of Ray.
    """
    config = replace(DETECTOR, optim=replace(DETECTOR.optim, epochs=1))
    spec = spec_of(made, tmp_path, config=config)
    distributed.fit(spec, workers=2, use_gpu=False)
    of_two = [row["loss"] for row in table(tmp_path / "steps.csv")]
    task = DetectorTask(
        checkpoint.load(tmp_path / "initial").net,
        spec.slices,
        spec.valid,
        InputContract.from_card(spec.card.input),
        config.variant,
    )
    alone = loop.run(
        task,
        card=spec.card,
        optim=config.optim,
        hardware=config.hardware,
        world=loop.World(),
        hooks=Kept(tmp_path / "alone"),
    )
    of_one = alone.losses["loss"]
    assert len(of_one) == 3
    # Adam divides by the root of a tiny second moment, so rounding grows over the steps.
    assert of_one[:2] == pytest.approx(of_two[:2], rel=1e-5)
    assert of_one == pytest.approx(of_two, rel=1e-3)
    assert len(set(of_one)) == 3  # and each step changes the weights


def test_both_stages_and_scoring_on_s3(cluster: str, s3: Any, made: Path, tmp_path: Path) -> None:
    """Data, models, checkpoints and outputs; then module S on two workers."""
    s3.bucket("project")
    for path in made.rglob("*"):
        if path.is_file():
            s3.upload("project", path.relative_to(made).as_posix(), path.read_bytes())
    detector = run.train(
        run.TrainJob(
            replace(DETECTOR, optim=replace(DETECTOR.optim, epochs=1)),
            data=Data("s3://project/lesions"),
            valid=Data("s3://project/lesions-valid"),
            model="s3://project/detector",
            out="s3://project/out-detector",
        )
    )
    assert len(table("s3://project/out-detector/steps.csv")) == 3
    classifier = run.train(
        run.TrainJob(
            replace(CLASSIFIER, hardware=replace(HARDWARE, workers=2)),
            data=Data("s3://project/slices", "s3://project/slices/split.txt"),
            valid=Data("s3://project/slices-valid"),
            model=detector.model,
            out="s3://project/out-classifier",
        )
    )
    loaded = checkpoint.load(classifier.model)
    assert loaded.card.arch.image_classes == ("control", "pneumonia", "covid")
    assert loaded.card.trained
    assert not loaded.card.notes
    # only module S moved
    before = checkpoint.load(detector.model).net.state_dict()
    after = loaded.net.detector.state_dict()
    assert all((after[name] == before[name]).all() for name in after)
    rows = table("s3://project/out-classifier/metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda r: (r["val_accuracy"], -r["val_loss"], -r["epoch"]))
    assert classifier.best_epoch == best["epoch"]
    assert (classifier.validation["slices"], classifier.validation["patients"]) == (3, 3)


def test_tuning_to_other_classes_is_followed_by_scoring(
    trained: run.TrainJob, made: Path, tmp_path: Path
) -> None:
    """iCTCF's case: a classifier of three classes, tuned to two."""
    first = Path(trained.out) / "model"
    for name, count, seed in (("two", 6, 5), ("two-valid", 2, 6)):
        source = write_slices(tmp_path / f"{name}-flat", count=count, seed=seed, classes=2)
        for label, prefix in (("nCT", "Normal"), ("pCT", "CP")):
            (tmp_path / name / label).mkdir(parents=True)
            for path in source.glob(f"{prefix}_*"):
                path.rename(tmp_path / name / label / path.name)
    config = replace(
        CLASSIFIER, classes=("control", "covid"), variant="s+bn", loss="cross-entropy",
        ranked=0, hidden=0, half=True, optim=replace(CLASSIFIER.optim, epochs=1),
    )  # fmt: skip
    second = run.train(
        run.TrainJob(
            config,
            data=Data(str(tmp_path / "two")),
            valid=Data(str(tmp_path / "two-valid")),
            model=str(first),
            out=str(tmp_path / "2"),
        )
    )
    card = read_card(second.model)
    assert (card.arch.image_classes, card.activation) == (("control", "covid"), "softmax")
    weights = tmp_path / "2" / "model" / "weights.safetensors"
    assert weights.stat().st_size < 0.6 * (first / "weights.safetensors").stat().st_size
    out = tmp_path / "scored"
    source = models.open_source(second.model)
    score.score(
        score.ScoreJob(
            [str(made / "slices" / "*.png")],
            out=str(out),
            source=source,
            settings=ScoreConfig(actors=1),
        )
    )
    rows = tables.rows((out / "predictions").as_uri())
    assert {row["pred_class"] for row in rows} <= {"control", "covid"}
    assert all(row["p_control"] + row["p_covid"] == pytest.approx(1, abs=1e-5) for row in rows)


def test_wrong_settings_and_data_are_refused(trained: run.TrainJob, tmp_path: Path) -> None:
    def ask(
        *, optim: dict[str, Any] | None = None, hardware: dict[str, Any] | None = None, **job: Any
    ) -> run.TrainResult:
        config = replace(
            CLASSIFIER,
            optim=replace(CLASSIFIER.optim, **optim or {}),
            hardware=replace(HARDWARE, **hardware or {}),
        )
        return run.train(replace(trained, config=config, **job))

    with pytest.raises(ResumeError, match=r"settings\.optim\.lr: 0\.001 there, 0\.002 here"):
        ask(optim={"lr": 2e-3})
    with pytest.raises(DataError, match="share 9 patients"):
        ask(valid=trained.data, out=str(tmp_path / "leak"))
    with pytest.raises(ConfigError, match=r"hardware\.workers: 64 asked"):
        ask(hardware={"workers": 64}, out=str(tmp_path / "many"))


def test_a_finished_run_starts_nothing_and_more_epochs_go_on(trained: run.TrainJob) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "fit", None)
        assert run.train(trained).epochs == 3
    place = Path(trained.out) / "metrics.csv"
    first = figures(table(place))
    more = replace(CLASSIFIER, optim=replace(CLASSIFIER.optim, epochs=4))
    assert run.train(replace(trained, config=more)).epochs == 4
    rows = figures(table(place))
    assert len(rows) == 4
    assert rows[:3] == first


def test_a_diverged_loss_is_one_line(cluster: str, made: Path, tmp_path: Path) -> None:
    """And are not tried again, as a lost machine would be."""
    wild = replace(CLASSIFIER, optim=replace(CLASSIFIER.optim, lr=1e30))
    job = run.TrainJob(wild, out=str(tmp_path / "out"), **slices_of(made, model=made / "detector"))
    with pytest.raises(ModelError, match=r"not finite|no longer finite in epoch \d; lower optim"):
        run.train(job)


def workers(of: int | None = None) -> list[psutil.Process]:
    """Those that this test or the process `of` has started: there may be others here."""
    result = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                result.append(process)
        except psutil.Error:
            continue
    return result


def test_a_run_killed_in_an_epoch_ends_as_an_unbroken_run(
    cluster: str, made: Path, tmp_path: Path
) -> None:
    """SIGKILL of the command and all its processes, Ctrl-C, then the same job again."""

    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cctmn.cli", "train", "detector", "--json"]
        command += ["--data", str(made / "lesions"), "--valid", str(made / "lesions-valid")]
        command += ["-m", str(made / "detector"), "-o", str(out), "--set", "optim.epochs=3"]
        command += ["--set", "optim.lr=1e-3", "--set", "hardware.threads=1"]
        command += ["--set", "hardware.checkpoint_s=0", "--set", "hardware.workers=1"]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=end_with_the_test_run,
        )

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    running = start(broken)
    end = time.monotonic() + TIMEOUT_S
    try:
        while not list(broken.glob("checkpoints/checkpoint_*/state.pt")):
            assert time.monotonic() < end
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        time.sleep(0.3)  # into the next epoch
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    with start(broken) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "CPU worker" in line:
                break
        while not workers(of=running.pid):
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        talk = running.stderr.read()
    assert running.returncode == 130, talk
    assert "Run the same command again to resume" in talk
    assert not (broken / "model").exists()
    config = DetectorConfig(optim=Optim(epochs=3, lr=1e-3), hardware=HARDWARE)
    resumed, unbroken = (
        run.train(run.TrainJob(config, out=str(out), **lesions_of(made))) for out in (broken, whole)
    )
    assert resumed.validation == unbroken.validation
    assert figures(table(broken / "metrics.csv")) == figures(table(whole / "metrics.csv"))
    assert table(broken / "steps.csv") == table(whole / "steps.csv")
    weights = [checkpoint.load(out / "last").net.state_dict() for out in (broken, whole)]
    assert all(np.array_equal(weights[0][k], weights[1][k]) for k in weights[0])
