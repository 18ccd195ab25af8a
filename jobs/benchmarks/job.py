"""The scoring job on Ray with two scorers against two processes that only read and score."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# A process of its own is started by this file's name, and then the folder above is not there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commits import seconds_per_slice
from benchmarks.comparison import Comparison, of_samples

SCORERS = 2
SLICES = 320  # of the steady state
FIRST_SLICES = 100  # of the start-up
START_S = 8.0  # that the start-up may take
DRAWN = 40  # slices; the others are copies of them
BATCH = 4  # slices per forward pass, as in a job on CPUs


def bare_s(folder: Path, model: Path, *, count: int) -> float:
    """Seconds in which the bare loops score so many slices, from their first slice to the last."""
    command = [sys.executable, __file__, str(folder), str(model), str(count)]
    pipe = subprocess.PIPE
    loops = [
        subprocess.Popen([*command, str(number)], stdin=pipe, stdout=pipe, text=True)
        for number in range(SCORERS)
    ]
    for loop in loops:
        assert loop.stdout is not None
        loop.stdout.readline()  # it has loaded the model and scored one slice
    began = time.monotonic()
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("begin\n")
        loop.stdin.flush()
    for loop in loops:
        loop.communicate()
        assert not loop.returncode, "a bare loop failed"
    return time.monotonic() - began


def loop(folder: Path, model: Path, *, count: int, number: int) -> None:
    """Be one bare loop: read and score each slice that is its own, and keep the predictions."""
    from cctmn.contract import InputContract
    from cctmn.read import decode
    from cctmn.read.preprocess import to_input
    from cctmn.score.models import open_source

    source = open_source(str(model))
    contract, scorer = InputContract.from_card(source.input), source.load(False)
    paths = sorted(folder.iterdir())[:count][number::SCORERS]

    def score(batch: Sequence[Path]) -> list[object]:
        slices = [decode.open_image(path.read_bytes()).frame(0) for path in batch]
        images = [to_input(slice_, contract).pixels for slice_ in slices]
        return list(scorer.predict(images, masks=False))

    score(paths[:1])
    print("ready", flush=True)
    sys.stdin.readline()
    predictions = [
        prediction
        for start in range(0, len(paths), BATCH)
        for prediction in score(paths[start : start + BATCH])
    ]
    assert len(predictions) == len(paths)


def job_s(folder: Path, model: Path, out: Path) -> tuple[float, float]:
    """Seconds of a job from the command to its last row, and seconds per slice when it is warm."""
    command = [sys.executable, "-m", "cctmn.cli", "score", str(folder), "-o", str(out)]
    command += ["-m", str(model), "--device", "cpu", "--set", f"actors={SCORERS}", "-q"]
    began = time.time()
    subprocess.run(command, check=True, capture_output=True)
    last = max(path.stat().st_mtime for path in (out / "predictions").glob("*.parquet"))
    return last - began, seconds_per_slice(out / "predictions", workers=SCORERS)


def make(here: Path, name: str, *, count: int) -> Path:
    """Write a folder of so many DICOM slices, without compression."""
    import numpy as np

    from cctmn.phantom import draw, layouts

    folder = here / name
    folder.mkdir()
    rng = np.random.default_rng(1)
    patient = draw.Patient.drawn(rng)
    drawn = min(DRAWN, count)
    for number in range(drawn):
        hu = draw.slice_of(patient, height=(number + 0.5) / drawn, rng=rng).hu
        data = layouts.dicom_bytes(hu, patient=0, number=number, seed=1)
        for copy in range(number, count, drawn):
            (folder / f"{copy:05d}.dcm").write_bytes(data)
    return folder


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds per slice in steady state, and seconds of a small job from the command on."""
    from cctmn.classes import COVIDX_CLASSES, LESION_MODES
    from cctmn.model import checkpoint
    from cctmn.model.card import Arch, Card

    times = max(2, repeats // 4)
    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        arch = Arch("resnet18", 1, LESION_MODES["both"], False, COVIDX_CLASSES, 128, 512)
        card = Card(name="bench", arch=arch, trained=False)
        model = here / "model"
        checkpoint.save(checkpoint.fresh(arch, seed=0), model, card=card)
        for count, name in ((SLICES, "steady"), (FIRST_SLICES, "start")):
            folder = make(here, name, count=count)
            ours: list[float] = []
            theirs: list[float] = []
            for repeat in range(times):
                alone = bare_s(folder, model, count=count)
                whole, per_slice = job_s(folder, model, here / f"{name}-{repeat}")
                if name == "steady":
                    ours.append(per_slice)
                    theirs.append(alone / count)
                else:
                    ours.append(whole)
                    theirs.append(alone + START_S)
            if name == "steady":
                title = f"job with {SCORERS} scorers, per slice, against bare loops"
                yield of_samples(title, ours, theirs, target=0.95)
            else:
                title = f"job of {count} slices, against bare loops and {START_S:g} s"
                yield of_samples(title, ours, theirs, target=1.0)


if __name__ == "__main__":  # a bare loop, in a process of its own
    loop(Path(sys.argv[1]), Path(sys.argv[2]), count=int(sys.argv[3]), number=int(sys.argv[4]))
