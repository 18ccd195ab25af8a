"""Fetch, decode and write of the scoring job against a plain loop with pydicom.

Both have two processes. The job's scorers are stand-ins that return at once, and its slices are
checked, counted and committed as always. The plain loop reads a file, decodes its pixels, and makes
the window of a model's input.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# A process of its own is started by this file's name, and then the folder above is not there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commits import seconds_per_slice
from benchmarks.comparison import Comparison, of_samples

PROCESSES = 2
DRAWN = 50  # slices
COPIES = 256  # links to each file or archive, so that the disk holds few
# Ray starts more workers, each with its decoder, while the first thousands of slices are read, and
# each worker touches the pages of the object store for the first time.
WARM_UP = 0.5  # of the job
UNCOMPRESSED, JPEG_LOSSLESS = "uncompressed", "JPEG lossless"
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = {}  # pydicom asks each plugin's module for it


class AtOnce:
    """A stand-in for a model: it finds nothing in any slice."""

    def predict(self, images: Sequence[Any], *, masks: bool) -> list[Any]:  # noqa: ARG002
        """One empty prediction per image."""
        import numpy as np

        return [
            SimpleNamespace(
                logits_C=np.zeros(3, np.float32),
                boxes_M4=np.zeros((0, 4), np.float32),
                scores_M=np.zeros(0, np.float32),
                labels_M=np.zeros(0, int),
                mask_px_M=None,
                mask_logits_M1SS=None,
                ranked_features_N5=None,
                ranked_boxes_N4=None,
            )
            for _ in images
        ]


def ours(folder: Path, out: Path) -> None:
    """Run the job with stand-ins."""
    from cctmn.config import ScoreConfig
    from cctmn.contract import InputContract
    from cctmn.score import run
    from cctmn.score.job import ScoreJob
    from cctmn.score.scorer import ModelSource

    source = ModelSource(
        model_id="stand-in",
        image_classes=("control", "pneumonia", "covid"),
        lesion_classes=("lesion",),
        activation="softmax",
        input=InputContract().to_card(),
        identity={"model_id": "stand-in"},
        load=lambda _: AtOnce(),
    )
    settings = ScoreConfig(actors=PROCESSES, gpus=0)
    # The first run looks into all files. Else the second one would do it while it scores, and start
    # its processes anew for the slices that are known by then.
    for limit in (1, None):
        run.score(ScoreJob([str(folder)], str(out), source, settings, limit=limit))


def is_available(uid: str) -> bool:  # noqa: ARG001 - pydicom's signature
    """Tell pydicom that the plugin of this module can be used."""
    return True


def decode_frame(stream: bytes, runner: Any) -> bytearray:  # noqa: ARG001 - pydicom's signature
    """Decode a JPEG-lossless frame for pydicom, where it has no plugin of its own."""
    import imagecodecs

    return bytearray(imagecodecs.jpeg8_decode(stream).tobytes())


def plain(folder: Path, number: int) -> None:
    """Be one plain loop over the slices that are its own."""
    import numpy as np
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGLosslessSV1

    if not (decoder := get_decoder(JPEGLosslessSV1)).is_available:
        decoder.add_plugin("imagecodecs", ("benchmarks.reading", "decode_frame"))

    def inputs() -> Iterator[Any]:
        for path in sorted(folder.iterdir())[number::PROCESSES]:
            if path.suffix != ".zip":
                yield path
                continue
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield io.BytesIO(archive.read(name))

    def read(source: Any) -> Any:
        dataset = pydicom.dcmread(source)
        hu = dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept
        return (255 * np.clip((hu + 1350) / 1500, 0, 1)).astype(np.uint8)

    everything = inputs()
    read(next(everything))  # imports the decoder
    print("ready", flush=True)
    sys.stdin.readline()
    began, count = time.perf_counter(), 0
    for source in everything:
        read(source)
        count += 1
    print((time.perf_counter() - began) / count, flush=True)


def theirs_s(folder: Path) -> float:
    """Seconds per slice of the plain loops together."""
    pipe = subprocess.PIPE
    loops = [
        subprocess.Popen(
            [sys.executable, __file__, "plain", str(folder), str(number)],
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    for loop in loops:
        assert loop.stdout is not None
        loop.stdout.readline()
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("begin\n")
        loop.stdin.flush()
    seconds = [float(loop.communicate()[0]) for loop in loops]
    return 1 / sum(1 / each for each in seconds)


def make(here: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """Write a folder of loose files and a folder of archives of one kind."""
    import imagecodecs
    import numpy as np
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLosslessSV1

    from cctmn.phantom import draw, layouts

    files: dict[str, bytes] = {}
    rng = np.random.default_rng(1)
    patient = draw.Patient.drawn(rng)
    for number in range(DRAWN):
        hu = draw.slice_of(patient, height=(number + 0.5) / DRAWN, rng=rng).hu
        data = layouts.dicom_bytes(hu, patient=0, number=number, seed=1)
        if kind == JPEG_LOSSLESS:
            dataset = pydicom.dcmread(io.BytesIO(data))
            stream = bytes(imagecodecs.ljpeg_encode(dataset.pixel_array))
            dataset.PixelData = encapsulate([stream])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
            data = buffer.getvalue()
        files[f"{number:03d}.dcm"] = data
    loose, zipped = here / f"{kind}-loose", here / f"{kind}-zip"
    loose.mkdir()
    zipped.mkdir()
    with zipfile.ZipFile(here / f"{kind}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            (here / f"{kind}-{name}").write_bytes(data)
            archive.writestr(name, data)
    for copy in range(COPIES):
        os.link(here / f"{kind}.zip", zipped / f"{copy:03d}.zip")
        for name in files:
            os.link(here / f"{kind}-{name}", loose / f"{copy:03d}-{name}")
    yield "loose", loose
    yield "zip", zipped


def lines(repeats: int) -> Iterator[Comparison]:
    """Seconds per slice of four kinds of input, the job and the loop in turn."""
    times = max(2, repeats // 4)
    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        for kind in (UNCOMPRESSED, JPEG_LOSSLESS):
            for packed, folder in make(here, kind):
                samples: tuple[list[float], list[float]] = ([], [])
                for repeat in range(times):
                    samples[1].append(theirs_s(folder))
                    out = here / f"out-{kind}-{packed}-{repeat}"
                    command = [sys.executable, __file__, "ours", str(folder), str(out)]
                    subprocess.run(command, check=True, capture_output=True)
                    pace = seconds_per_slice(
                        out / "predictions", workers=PROCESSES, warm_up=WARM_UP
                    )
                    samples[0].append(pace)
                name = f"reading {kind}, {packed}, per slice, against pydicom"
                yield of_samples(name, *samples, target=1.0)


if __name__ == "__main__":  # in a process of its own
    if sys.argv[1] == "ours":
        ours(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        plain(Path(sys.argv[2]), int(sys.argv[3]))
