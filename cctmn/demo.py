"""The demo: the main job on a synthetic DICOM archive, with the model that comes with cctmn.

It writes DIR/archive.zip with its truth, DIR/out and the reports, and compares the predictions with
the truth. Every step is the real one. The patients are phantoms, and so were those that the model
was trained on.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctmn import tables
from cctmn.classes import CONTROL
from cctmn.evaluate import run as evaluation
from cctmn.evaluate.options import EvaluationOptions
from cctmn.metrics.intervals import Resampling
from cctmn.model.card import SHIPPED
from cctmn.phantom import layouts
from cctmn.report import archive_report, render, worklist
from cctmn.reporter import Reporter
from cctmn.score import models
from cctmn.score.job import ScoreJob

MODEL = f"{SHIPPED}demo"
PATIENTS, SLICES = 4, 8
# Four patients allow few different resamples.
RESAMPLES = 500
# Lines of the worklist that the demo prints.
WORKLIST_LINES = 10
# Patients that training did not see.
SEED = 7
HARD = "The hard slices are the ends of a lesion, where little of it is visible."
WARNING = (
    "The slices are phantoms and the model was trained on phantoms. cctmn is research software, "
    "not a medical device."
)


def prepare(folder: Path, *, report: Reporter) -> ScoreJob:
    """Write the archive unless it is there, and return the job to score it."""
    archive = folder / "archive.zip"
    if not layouts.truth_path(archive).exists():
        layouts.write_archive(archive, patients=PATIENTS, slices=SLICES, seed=SEED)
    report(f"{archive}: {PATIENTS} synthetic patients, {SLICES} DICOM slices each")
    return ScoreJob(
        inputs=[str(archive)], out=str(folder / "out"), source=models.open_source(MODEL)
    )


def comparison(folder: Path) -> str:
    """Return the predictions beside the truth, one line per slice, and how many agree."""
    with layouts.truth_path(folder / "archive.zip").open(encoding="utf-8") as file:
        truth = {row["member"]: row for row in csv.DictReader(file)}
    out = (folder / "out").absolute().as_uri()
    members = {
        row["slice_id"]: row["member"]
        for table in tables.inventory(f"{out}/private/inventory")
        for row in table.to_pylist()
    }
    rows = {members[row["slice_id"]]: row for row in tables.rows(f"{out}/predictions")}
    lines = [
        "patient   z_mm  truth      lesion px  predicted  p_control  p_pneumonia  p_covid  lesions"
    ]
    right = 0
    for member, true in truth.items():
        row = rows[member]
        right += row["pred_class"] == true["finding"]
        lines.append(
            f"{true['patient']:>7}  {row['slice_z_mm'] + 0.0:>5.0f}  {true['finding']:<9}  "
            f"{int(true['ggo_px']) + int(true['consolidation_px']):>9,}  "
            f"{row['pred_class']:<9}  {row['p_control']:>9.3f}  {row['p_pneumonia']:>11.3f}  "
            f"{row['p_covid']:>7.3f}  {row['num_lesions']:>7}"
        )
    lines.append(f"{right} of {len(truth)} slices are classified correctly. {HARD}")
    lines += ["", *_studies(out, rows, truth={m: t["finding"] for m, t in truth.items()})]
    return "\n".join([*lines, WARNING])


def _studies(
    out: str, rows: Mapping[str, Mapping[str, Any]], *, truth: Mapping[str, str]
) -> list[str]:
    """Return the studies beside the truth, those that are likeliest sick first.

    `rows` are the predictions by member, and `truth` the class of each member.
    """
    sick: dict[str, str] = {}  # a study with one sick slice is sick
    members: dict[str, str] = {}
    for member, row in rows.items():
        members[row["slice_id"]] = member
        if truth[member] != CONTROL or row["study_key"] not in sick:
            sick[row["study_key"]] = truth[member]
    studies = sorted(tables.rows(f"{out}/studies"), key=lambda study: study["p_control"])
    lines = ["truth      predicted  p_control  p_pneumonia  p_covid  the slice that says most"]
    lines += [
        f"{sick[study['study_key']]:<9}  {study['pred_class']:<9}  {study['p_control']:>9.3f}  "
        f"{study['p_pneumonia']:>11.3f}  {study['p_covid']:>7.3f}  "
        f"{members[study['deciding_slices'][0]]}"
        for study in studies
    ]
    right = sum(study["pred_class"] == sick[study["study_key"]] for study in studies)
    return [*lines, f"{right} of {len(studies)} studies are classified correctly."]


def first_of_worklist(folder: Path) -> tuple[str, str]:
    """Draw the report that needs no labels; the first lines of its worklist, and its URI.

    The deciding slices are shown, for phantoms have no privacy.
    """
    written = archive_report.write(str(folder / "out"), pictures=True)
    return worklist.to_text(written.rows, limit=WORKLIST_LINES), written.uri


def report(folder: Path, *, report: Reporter) -> str:
    """Evaluate by the truth and draw the report of the evaluation; its URI."""
    labels = folder / "labels.csv"
    with layouts.truth_path(folder / "archive.zip").open(encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    with labels.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("uri", "label", "patient"))
        table.writerows((f"archive.zip::{t['member']}", t["finding"], t["patient"]) for t in truth)
    job = EvaluationOptions(
        out=str(folder / "out"),
        labels=str(labels),
        to=str(folder / "evaluation"),
        key="uri",
        resampling=Resampling(RESAMPLES),
    )
    evaluation.evaluate(job, report=report)
    return render.write(job.to)
