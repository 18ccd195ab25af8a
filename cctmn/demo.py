"""The main job on made-up data: a synthetic DICOM archive, an untrained model, one scoring run.

In: a folder. Out: DIR/archive.zip, DIR/model, DIR/out, and a table of what was found. It shows that
every step works here; until a trained model ships with cctmn the scores themselves mean nothing.
"""

from __future__ import annotations

from pathlib import Path

from cctmn.data import phantom_files as phantom
from cctmn.model import checkpoint
from cctmn.model.card import Arch, Card
from cctmn.schema import COVIDX_CLASSES
from cctmn.score import models, resume
from cctmn.score.run import Job
from cctmn.talk import Say

PATIENTS, SLICES = 3, 6
SEED = 20
WARNING = (
    "The model is untrained: its classes and lesions mean nothing. "
    "What this shows is that reading, scoring and writing work on this machine."
)


def prepare(folder: Path, *, say: Say) -> Job:
    """Write the archive and the model unless they are there, and return the job to score them."""
    archive, model = folder / "archive.zip", folder / "model"
    if not archive.exists():
        phantom.write_archive(archive, patients=PATIENTS, slices=SLICES, seed=SEED)
    arch = Arch(
        backbone="resnet18",
        truncation=1,
        lesion_classes=("ggo", "consolidation"),
        mask_head=False,
        image_classes=COVIDX_CLASSES,
        ranked=128,
        hidden=512,
    )
    card = Card(
        name="demo-untrained", arch=arch, trained=False, notes=(f"random weights, seed {SEED}",)
    )
    checkpoint.save(checkpoint.fresh(arch, seed=SEED), model, card=card)
    say(f"{archive}: {PATIENTS} synthetic patients, {SLICES} DICOM slices each")
    return Job(
        inputs=[str(archive)], out=str(folder / "out"), source=models.open_source(str(model))
    )


def found(folder: Path) -> str:
    """The predictions as a table, one line a slice, and the warning."""
    rows = resume.rows((folder / "out" / "predictions").absolute().as_uri())
    patients = sorted({row["patient_key"] for row in rows})
    lines = ["patient   z_mm  p_control  p_pneumonia  p_covid  lesions  flags"]
    for row in sorted(rows, key=lambda row: (row["patient_key"], -row["slice_z_mm"])):
        lines.append(
            f"{patients.index(row['patient_key']) + 1:>7}  {row['slice_z_mm'] + 0.0:>5.0f}"
            f"  {row['p_control']:>9.3f}  {row['p_pneumonia']:>11.3f}  {row['p_covid']:>7.3f}"
            f"  {row['num_lesions']:>7}  {' '.join(row['flags']) or '-'}"
        )
    return "\n".join([*lines, "", WARNING])
