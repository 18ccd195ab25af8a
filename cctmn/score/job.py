"""A scoring job, its result, and the manifest that is shared with the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cctmn import numerics, store, versions
from cctmn.config import ScoreConfig
from cctmn.errors import EXIT_ERROR_RATE, EXIT_OK, EXIT_REFUSED, state_of
from cctmn.identity import FITTED_ON, KEY, RunIdentity
from cctmn.numerics import Numerics
from cctmn.reporter import run_id
from cctmn.score import prepare
from cctmn.score.commit import Stamp
from cctmn.score.reconcile import Counts
from cctmn.score.scorer import ModelSource

FORMAT = 1  # of the output folder
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ScoreJob:
    """What to score, with which model and settings, and where the results go."""

    inputs: Sequence[str]
    out: str  # path or s3://
    source: ModelSource
    settings: ScoreConfig = field(default_factory=ScoreConfig)
    limit: int | None = None  # slices of this run
    retry_errors: bool = False
    root: str | None = None  # base folder or prefix for relative URIs in a manifest
    access: store.S3Access = field(default_factory=store.S3Access)  # to the buckets of INPUT
    reader: int = prepare.READER_VERSION  # an older folder keeps the number it began with
    device: str = ""  # "cpu" or "cuda"; "" until the cluster of a new OUT is known
    has_numerics_in_identity: bool = True  # False in a folder of an older version

    @property
    def numerics(self) -> Numerics:
        """The kind of device and the precision."""
        return Numerics(self.device, self.source.precision)

    @property
    def identity(self) -> RunIdentity:
        """Everything that changes the prediction rows."""
        values = {
            "format": FORMAT,
            "model": self.source.identity,
            "ranked_boxes": self.settings.ranked_boxes,
            "reader": self.reader,
        }
        # Without masks the key is absent, so that older folders keep their fingerprint.
        if self.settings.masks:
            values["masks"] = True
        if self.device and self.has_numerics_in_identity:
            values |= self.numerics.as_json()
        return RunIdentity(values)

    def stamp(self, key: bytes) -> Stamp:
        """Return what every file of this job says about it, with the key of the folder."""
        return Stamp.of(
            fingerprint=self.identity.fingerprint(),
            key=key,
            numerics=self.numerics if self.device else None,
        )


@dataclass(frozen=True)
class ScoreSummary:
    """The result of a scoring run."""

    counts: Counts
    studies: dict[str, int]  # studies by predicted class; "" for those without an answer
    scored_now: int  # slices of this run
    elapsed_s: float
    max_error_rate: float
    limited: bool = False  # the run was asked for a part of the slices only
    scorers: dict[str, int] = field(default_factory=dict)  # of this run, by name of their device

    @property
    def error_rate(self) -> float:
        """Fraction of errors among the slices that should have a score; 0 without such slices."""
        rows = self.counts.ok + self.counts.error
        return self.counts.error / rows if rows else 0.0

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0, 3 for too many errors, 4 for slices left without a row."""
        if self.counts.pending and not self.limited:
            return EXIT_REFUSED
        return EXIT_ERROR_RATE if self.error_rate > self.max_error_rate else EXIT_OK


def manifest(job: ScoreJob, summary: ScoreSummary) -> dict[str, Any]:
    """Return what is shared with the predictions: counts and versions, no patient data."""
    counts = asdict(summary.counts)

    def of_state(state: str) -> dict[str, int]:
        return {code: n for code, n in counts["codes"].items() if state_of(code) == state}

    return {
        "format": FORMAT,
        "complete": summary.counts.pending == 0,
        "counts": {k: counts[k] for k in ("inventory", "ok", "passed_over", "error", "pending")},
        "passed_over": of_state("passed_over"),
        "errors": of_state("error"),
        "flags": counts["flags"],
        "abstained": counts["abstained"],
        "classes": counts["classes"],
        "studies": {name or "none": n for name, n in summary.studies.items()},
        "error_rate": round(summary.error_rate, 6),
        "exit_code": summary.exit_code,
        "last_run": {
            "id": run_id(),
            "slices": summary.scored_now,
            "elapsed_s": round(summary.elapsed_s, 1),
            "scorers": summary.scorers,
        },
        numerics.KEY: job.numerics.as_json() | {"devices": counts["devices"]},
        # Whoever knows a name can test it against the records of sets: they stay in private/.
        "model": {k: v for k, v in job.source.described.items() if k != FITTED_ON}
        | {"input": job.source.input},
        "fingerprint": job.identity.fingerprint(),
        KEY: job.identity.as_json(),
        "versions": versions.libraries(),
    }
