"""Submit jobs to a Ray cluster, follow them and stop them, through Ray's Jobs API.

The id of a job is computed from its OUT, so that two jobs cannot write there at the same time. Ray
accepts each id once. This also decides between two users who submit at the same moment: both have
counted the same earlier attempts, so both ask for the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from cctmn import embedded, store, upload
from cctmn.dashboard import (
    CONNECT_S,
    DEFAULT_ADDRESS,
    first_line,
    probe,
    token_error,
    use_token,
)
from cctmn.errors import (
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_STOPPED,
    ConfigError,
    InputError,
    PreflightError,
    ResumeError,
)
from cctmn.reporter import RUN_ID_VARIABLE

# Each answer must come within this time; the dashboard may be busy unpacking an upload.
ANSWER_S: Final = 120.0
# Following a job ends after this time without an answer.
LOST_S: Final = 60.0
# A head whose machine is gone does not close its connections, so a silent log is looked after.
QUIET_S: Final = 20.0
PAUSE_S: Final = 1.0
# The dashboard of a new head answers before the agent that starts jobs; Ray then says this.
START_S: Final = 30.0
NO_AGENT: Final = "No available agent"
# A stopped job has this time to release its lock; Ray's own 3 s are too short.
STOP_WAIT_S: Final = 30

# Variables that the nodes need to reach the same storage. Keys are not among them.
PASSED_ON: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
# Loggers of Ray's client; their errors are reported in one line here.
CLIENT_LOGGERS: Final = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.authentication.http_token_authentication",
    "_private.runtime_env.packaging",
    "_private.runtime_env.working_dir",
)
ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")

# What a job without a script runs: the command line.
MODULE: Final = "cctmn.cli"

T = TypeVar("T")
Write = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """A job to submit: its script, arguments and environment, and where its code comes from."""

    # A path; None runs the command `cctmn` itself.
    script: str | None
    args: Sequence[str] = ()
    # The output folder that the script is given, or None if it has none.
    out: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    # The folder to upload; None uploads what git tracks of the checkout that holds the script, and
    # without a script this package.
    working_dir: str | None = None
    # If False, cctmn is in the cluster's image, and the script is a path in it.
    upload: bool = True


@dataclass(frozen=True)
class JobStatus:
    """The state of a job: Ray's `status`, and the exit code once the job has ended."""

    id: str
    status: str
    exit_code: int | None
    message: str = ""


@dataclass(frozen=True)
class ListedJob:
    """A job that the cluster knows: its state, and what it runs; times are in s since 1970."""

    id: str
    status: str
    entrypoint: str
    started_s: float | None
    ended_s: float | None


def base_id(out: str | None) -> str:
    """Return the id of all jobs with this OUT, without the number of the attempt.

    A job without OUT gets a random id. Raises ConfigError if OUT is not a place that all nodes
    share.
    """
    if out is None:
        return f"cctmn-{secrets.token_hex(6)}"
    if not store.is_absolute(out):
        raise ConfigError(
            f"OUT {out}: a relative path is lost when the job ends; give s3://... or the absolute "
            "path of a folder that all nodes share"
        )
    uri = store.to_uri(out).rstrip("/")
    return f"cctmn-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def runtime_env(order: Order, *, folder: str | None) -> dict[str, Any]:
    """Return Ray's runtime environment for the job, with the folder to upload or without one."""
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    for name in PASSED_ON:
        value = os.environ.get(name)
        # A URL like http://user:password@host is a secret.
        if value and urlsplit(value).username is None:
            env[name] = value
    environment: dict[str, Any] = {"env_vars": env | dict(order.env)}
    return environment if folder is None else environment | {"working_dir": folder}


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect; raises PreflightError within CONNECT_S if the dashboard is silent or refuses."""
        self._address = address
        if probe(address) in (401, 403):
            use_token()
        # Ray prefers this variable to any argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        from ray.job_submission import JobSubmissionClient

        # Its core may have read the environment before.
        embedded.read_environment_again()

        # Each of these loggers sets its own level, so one level for all is not enough.
        for name in CLIENT_LOGGERS:
            logging.getLogger(f"ray.{name}").setLevel(logging.CRITICAL)
        self._client: Any = self._ask(lambda: JobSubmissionClient(address))
        # Ray's client sets no timeout; keyword arguments passed here reach `requests`. The method
        # is private: tests/test_cli_submit.py fails when Ray changes it.
        self._client._do_request = functools.partial(
            self._client._do_request, timeout=(CONNECT_S, ANSWER_S)
        )

    def submit(
        self,
        order: Order,
        *,
        write: Write,
        check: Callable[[Path | None], None] = lambda folder: None,  # noqa: ARG005
    ) -> str:
        """Submit the job and return its id; `write` gets a line on what is uploaded.

        `check` is called before anything is sent, with the folder that is uploaded, or None if
        nothing of this machine is; what it raises ends the submission. Raises ResumeError while a
        job with this OUT runs.
        """
        # 1. Asked first, for a refusal must not wait until files are copied.
        submission_id = self._free_id(order.out)
        # 2. What is uploaded, and the checks of the arguments.
        if not order.upload:
            check(None)
            return self._send(order, order.script, submission_id, folder=None)
        with upload.staged(order.script, order.working_dir) as what:
            check(None if "://" in what.folder else Path(what.folder))
            write(what.summary)
            # 3. The submission itself.
            return self._send(order, what.script, submission_id, folder=what.folder)

    def _free_id(self, out: str | None) -> str:
        """Return the id of the next attempt at this OUT. Raises ResumeError while one runs."""
        base = base_id(out)
        attempts = self._attempts(base)
        for job in attempts.values():
            if job.status not in ENDED:
                raise self._busy(job.submission_id, str(job.status))
        number = 1 + max(attempts, default=0)
        return base if number == 1 else f"{base}-{number}"

    def _send(
        self, order: Order, script: str | None, submission_id: str, *, folder: str | None
    ) -> str:
        env = runtime_env(order, folder=folder)
        # The id appears in the job's log lines and metrics.
        env["env_vars"].setdefault(RUN_ID_VARIABLE, submission_id)
        program = ["-m", MODULE] if script is None else [script]
        end = time.monotonic() + START_S
        while True:
            try:
                self._ask(
                    lambda: self._client.submit_job(
                        entrypoint=shlex.join(["python", *program, *order.args]),
                        runtime_env=env,
                        submission_id=submission_id,
                    )
                )
            except PreflightError as error:
                if submission_id in {job.id for job in self.listed()}:
                    raise self._busy(submission_id, "submitted a moment ago") from None
                if NO_AGENT not in error.text or time.monotonic() > end:
                    raise
                time.sleep(PAUSE_S)
            else:
                return submission_id

    def listed(self) -> list[ListedJob]:
        """Return the jobs that were submitted to the cluster, the newest first."""
        jobs = [
            ListedJob(
                id=job.submission_id,
                status=str(job.status),
                entrypoint=job.entrypoint,
                started_s=job.start_time and job.start_time / 1000,
                ended_s=job.end_time and job.end_time / 1000,
            )
            # The others are drivers that have joined the cluster by themselves.
            for job in self._ask(self._client.list_jobs)
            if job.submission_id
        ]
        return sorted(jobs, key=lambda job: job.started_s or 0.0, reverse=True)

    def status(self, submission_id: str) -> JobStatus:
        """Return the state of the job. Raises InputError if the cluster does not know it."""
        info = self._ask(lambda: self._client.get_job_info(submission_id), job=submission_id)
        status, code = str(info.status), info.driver_exit_code
        if status not in ENDED:
            return JobStatus(submission_id, status, None)
        if status == "STOPPED":
            code = EXIT_STOPPED
        elif code is None:
            # The script did not run to its end: its node died, or its upload failed.
            code = EXIT_OK if status == "SUCCEEDED" else EXIT_REFUSED
        elif code < 0:
            # A signal ended the script; shells count it from 128 too.
            code = 128 - code
        # Of a script that ran, the message repeats the end of the log.
        message = "" if info.driver_exit_code is not None else first_line(info.message or "")
        return JobStatus(submission_id, status, code, message)

    def follow(self, submission_id: str, *, write: Write) -> JobStatus:
        """Pass the log to `write`, from its beginning, until the job ends; return its state.

        Raises InputError if the cluster does not know the job, PreflightError if the head of the
        cluster is gone for LOST_S or was replaced.
        """
        self.status(submission_id)
        try:
            return asyncio.run(self._tail(submission_id, write))
        except InputError:
            raise PreflightError(
                f"{self._address}: the head of the cluster was replaced, and the new one does not "
                f"know job {submission_id}; what the job has done is safe in OUT: submit it again "
                "to resume"
            ) from None

    def stop(self, submission_id: str) -> JobStatus:
        """Stop the job and wait until it has ended; return its state."""
        self.status(submission_id)
        self._ask(lambda: self._client.stop_job(submission_id), job=submission_id)
        end = time.monotonic() + 2 * STOP_WAIT_S
        while (now := self.status(submission_id)).exit_code is None and time.monotonic() < end:
            time.sleep(PAUSE_S)
        return now

    def _attempts(self, base: str) -> dict[int, Any]:
        """Return the jobs with this OUT that the cluster knows, by the number of the attempt."""
        attempts = {}
        for job in self._ask(self._client.list_jobs):
            if match := re.fullmatch(rf"{base}(?:-(\d+))?", job.submission_id or ""):
                attempts[int(match[1] or 1)] = job
        return attempts

    def _busy(self, submission_id: str, status: str) -> ResumeError:
        where = "" if self._address == DEFAULT_ADDRESS else f" --address {self._address}"
        return ResumeError(
            f"OUT: job {submission_id} ({status}) writes to it; follow that job with `cctmn submit"
            f"{where} --follow {submission_id}`, or stop it with `--stop {submission_id}`"
        )

    async def _tail(self, submission_id: str, write: Write) -> JobStatus:
        """Write the log as it comes; after a broken connection, only its new part."""
        import aiohttp

        seen, heard = 0, time.monotonic()
        while True:
            position = 0
            try:
                async for text in self._log(submission_id):
                    if new := text[max(0, seen - position) :]:
                        write(new)
                    position += len(text)
                    seen, heard = max(seen, position), time.monotonic()
                if (now := self.status(submission_id)).exit_code is not None:
                    return now
                # The job exists and has not started yet.
                heard = time.monotonic()
            except (RuntimeError, OSError, aiohttp.ClientError, PreflightError) as error:
                known = self._status_if_answered(submission_id)
                if time.monotonic() - heard > LOST_S:
                    if known is not None and known.exit_code is not None:
                        return known
                    raise self._lost(submission_id, error, answers=known is not None) from None
            await asyncio.sleep(PAUSE_S)

    def _status_if_answered(self, submission_id: str) -> JobStatus | None:
        with contextlib.suppress(PreflightError):
            return self.status(submission_id)
        return None

    def _lost(self, submission_id: str, error: Exception, *, answers: bool) -> PreflightError:
        """Return the error for a log that cannot be read any more."""
        reason = "no answer" if isinstance(error, PreflightError) else first_line(str(error))
        if answers:
            return PreflightError(
                f"{self._address}: the log of job {submission_id} cannot be read ({reason}), and "
                f"the job still runs; follow it again with --follow {submission_id}"
            )
        return PreflightError(
            f"{self._address}: the head of the cluster does not answer any more ({reason}), and "
            f"job {submission_id} ends with it; what the job has done is safe in OUT: submit it "
            f"again to resume, or follow it with --follow {submission_id} if only the connection "
            "was lost"
        )

    async def _log(self, submission_id: str) -> AsyncIterator[str]:
        """Yield the parts of the log, and "" after QUIET_S without any if the job is still known.

        Raises PreflightError or InputError if it is not.
        """
        parts = self._client.tail_job_logs(submission_id)
        part = asyncio.ensure_future(anext(parts, None))
        try:
            while True:
                if not (await asyncio.wait({part}, timeout=QUIET_S))[0]:
                    await asyncio.to_thread(self.status, submission_id)
                    yield ""
                    continue
                if (text := part.result()) is None:
                    return
                yield text
                part = asyncio.ensure_future(anext(parts, None))
        finally:
            part.cancel()
            await asyncio.gather(part, return_exceptions=True)
            await parts.aclose()

    def _ask(self, call: Callable[[], T], *, job: str | None = None) -> T:
        """Call Ray's client and turn its failures into PreflightError or InputError."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return call()
        except AuthenticationError:
            raise token_error(self._address) from None
        except (OSError, requests.RequestException) as error:
            raise PreflightError(
                f"{self._address}: the dashboard does not answer ({type(error).__name__}); check "
                "that the cluster runs"
            ) from None
        except (RuntimeError, ValueError) as error:
            text = str(error)
            if job is not None and "status code 404" in text:
                raise InputError(
                    f"{job}: no such job at {self._address}; check the id and --address"
                ) from None
            raise PreflightError(
                f"{self._address}: {first_line(text)}; check the cluster's dashboard"
            ) from None
