"""The part of a run that needs Ray: score what the index finds, while it finds more.

A part of the rows is one execution of the graph. Everything that the index has found meanwhile is
the next part, so that a job has few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Final

from cctmn import folder, numerics, runtime, store
from cctmn.errors import TRANSIENT, PreflightError
from cctmn.identity import KEY
from cctmn.numerics import CPU, CUDA
from cctmn.read import inventory
from cctmn.read.listing import look_up_all
from cctmn.reporter import Reporter, run_id
from cctmn.score import begun, meters, pipeline, reconcile, sizing
from cctmn.score.gpu_failures import HeldGpus
from cctmn.score.indexing import Index, Inventory
from cctmn.score.job import ScoreJob
from cctmn.score.prediction_files import PredictionFiles
from cctmn.score.progress import STARTING, Progress
from cctmn.score.todo import Pending, Todo

# Waiting for spot machines may take hours.
NO_PROGRESS_S: Final = 4 * 3600
# An index that takes no longer is awaited, so that the size of the job is known when it starts.
INDEX_S: Final = 3.0
# The scorers of the next part start anew, so it should be twice as large as the one before; the
# index has this time to find so many rows.
NEXT_PART_S: Final = 60.0
# Objects that are looked into once more at a time.
PAGE: Final = 2_000


class Scoring:
    """Scores the rows that lack a prediction, those that the index finds and those of before."""

    def __init__(
        self,
        job: ScoreJob,
        *,
        out: str,
        key: bytes,
        done: PredictionFiles,
        known: Inventory,
        todo: Todo,
        report: Reporter,
    ) -> None:
        self._job, self._out, self._key, self._report = job, out, key, report
        self._done, self._known, self._todo = done, known, todo
        self.scorers: dict[str, str] = {}  # device by id of the process
        self.planned = 0  # slices of this run
        self._index_reported = False
        self._held = HeldGpus(run_id())

    def run(self, address: str | None) -> ScoreJob:
        """Index and score; return the job with the device that was chosen."""
        job, report = self._job, self._report
        objects = inventory.list_objects(
            job.inputs, exclude=self._out, root=job.root, report=report
        )
        index = Index(
            objects,
            known=self._known,
            todo=self._todo,
            finished=self._done.finished,
            key=self._key,
            report=report,
        )
        with index:
            index.wait(rows=None, timeout_s=INDEX_S)
            self._report_index(index)
            if not index.is_done:
                report(f"{len(self._done.finished):,} slices done; scoring while INPUT is indexed")
                index.wait()
            if self._todo.waiting():
                report(f"0/{self._todo.rows:,}  starting Ray", transient=True)
                with runtime.session(address) as available:
                    try:
                        self._begin(available)
                        if not available.started_here:
                            index.use_cluster(available, access=job.access)
                        self._score(index)
                        index.wait(rows=None)
                    finally:
                        index.stop()  # before Ray, whose tasks it may use
            self._report_index(index)
        return self._job

    def _begin(self, available: runtime.Resources) -> None:
        """Choose the device, and record which job writes here."""
        self._job = job = _on_cluster(self._job, available, self._report)
        _record(job, store.join(self._out, "private"))
        # In a new folder the device, which every file names, is known only now.
        self._done.stamp = job.stamp(self._key)
        if job.settings.gpus > available.gpus:
            runtime.wait_for_gpus(
                [job.settings.gpus],
                available=available,
                limit_min=job.settings.gpu_wait_min,
                report=self._report,
            )

    def _score(self, index: Index) -> None:
        """Score part after part until the index has no more, and then what is still missing."""
        todo = self._todo
        with self._progress(lambda: todo.rows, index=index):
            rows = 0
            while not todo.is_full or todo.waiting():
                if rows and not index.is_done:
                    index.wait(rows=2 * rows, timeout_s=NEXT_PART_S)
                index.wait()
                part = todo.take()
                if not part.rows:
                    break
                rows = part.rows
                self.planned += rows
                self._execute(part, index=index)
        if self._job.limit is None:
            left = self._left()
            if left.rows:
                with self._progress(lambda: left.rows, index=index):
                    self._execute(left, index=index)

    def _progress(self, total: Callable[[], int], *, index: Index) -> Progress:
        return Progress(
            self._done.folder,
            total=total,
            is_final=lambda: index.is_done,
            report=self._report,
            stage=lambda: meters.stage(run_id()) or STARTING,
        )

    def _execute(self, part: Pending, *, index: Index) -> None:
        """Score the rows of a part, with a new plan whenever the graph stalls or loses a scorer.

        Adds each scorer's device to `scorers`, and reports it when the first is known.
        Raises PreflightError if no slice was scored for NO_PROGRESS_S, or if all GPUs fail.
        """
        job, idle_s = self._job, 0.0
        while part.rows:
            meters.reached("", run=run_id())
            available = runtime.resources()
            plan = sizing.make_plan(
                replace(available, gpus=available.gpus - len(self._held)),
                job.settings,
                pending=part.rows,
                access=job.access,
            )
            try:
                for block in pipeline.execute(
                    part.files,
                    out=self._done.folder,
                    source=job.source,
                    key=self._key,
                    plan=plan,
                    stamp=job.stamp(self._key),
                ):
                    self._report_index(index)
                    if not self.scorers:
                        count = plan.num_devices
                        self._report(
                            f"scoring on {count} x {block.device_name}, {job.source.precision}"
                        )
                    self.scorers[block.scorer] = block.device_name
                return
            except pipeline.Stalled:
                reason, lost_s = "no progress", float(pipeline.STALL_S)
            except pipeline.ScorerLost as lost:
                reason, lost_s = self._left_out(lost.gpus), 0.0
            self._done.refresh()
            left = self._todo.left_of(part, finished=self._done.finished)
            idle_s = idle_s + lost_s if left.rows == part.rows else 0.0
            if idle_s >= NO_PROGRESS_S:
                raise PreflightError(
                    f"no scorer could be scheduled for {NO_PROGRESS_S // 3600} hours; free "
                    "resources on the cluster and run the same command again to resume"
                )
            self._report(
                f"{reason}; continuing with the present nodes, {left.rows:,} slices to score"
            )
            part = left

    def _left_out(self, gpus: set[str]) -> str:
        """Leave GPUs out that fail again and again, and say so.

        Raises PreflightError if no other is left.
        """
        names = ", ".join(sorted(gpus))
        failed = f"{names} failed again and again; check with nvidia-smi"
        self._held.hold(gpus)
        if runtime.resources().gpus <= len(self._held):
            raise PreflightError(
                f"{failed}; no other GPU is left, so run the same command again to resume"
            )
        return failed

    def _left(self) -> Pending:
        """Return the slices that storage failed to give, and those of objects that were replaced.

        Their objects are looked into again.
        """
        self._done.refresh()
        put_back = self._done.withdraw(TRANSIENT)
        finished = self._done.finished
        uris = self._known.objects_left(finished=finished)
        if put_back:
            self._report(f"{put_back:,} slices could not be read; reading them once more")
        elif uris:
            self._report(f"{len(uris):,} objects were replaced; reading them once more")
        for at in range(0, len(uris), PAGE):
            page = uris[at : at + PAGE]
            table = inventory.look(list(look_up_all(page)), key=self._key)
            self._known.add(table, renewed=page)
            self._todo.add(reconcile.without(table, finished))
        return self._todo.take()

    def _report_index(self, index: Index) -> None:
        """Say once what the index has found. Raises its error."""
        index.check()
        if self._index_reported or not index.is_done:
            return
        self._index_reported = True
        finished = len(self._done.finished)
        for line in index.lines():
            self._report(line)
        self._report(f"{finished:,} slices done, {self._todo.rows:,} to score")


def _on_cluster(job: ScoreJob, available: runtime.Resources, report: Reporter) -> ScoreJob:
    """Return the job with its kind of device, which stays the same while the cluster changes."""
    gpus = begun.gpus_per_scorer(
        job.settings, device=job.device, available=available, report=report
    )
    job = replace(job, device=CUDA if gpus else CPU, settings=replace(job.settings, gpus=gpus))
    begun.check_precision(job.source.precision, device=job.device)
    calibration = job.source.described.get("calibration") or {}
    for note in numerics.calibration_note(calibration, [job.numerics]):
        report(f"caution: {note}")
    return job


def _record(job: ScoreJob, private: str) -> None:
    """Write which job writes here; the next run of this folder compares itself with it."""
    content = {
        KEY: job.identity.as_json(),
        numerics.KEY: job.numerics.as_json(),
        "inputs": list(job.inputs),
        "root": job.root,
        "settings": asdict(job.settings),
        "limit": job.limit,
    }
    folder.put_json(store.join(private, "run.json"), content)
