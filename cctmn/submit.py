"""Submit jobs to a Ray cluster, follow them and stop them, through Ray's Jobs API.

The id of a job is computed from its OUT, so that two jobs cannot write there at the same time. Ray
accepts each id once. This also decides between two users who submit at the same moment: both have
counted the same earlier attempts, so both ask for the same id.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from cctmn import store, upload
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

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
# The dashboard must accept a connection within this time.
CONNECT_S: Final = 5.0
# Each answer must come within this time; the dashboard may be busy unpacking an upload.
ANSWER_S: Final = 120.0
# Following a job ends after this time without an answer.
LOST_S: Final = 60.0
PAUSE_S: Final = 1.0
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

T = TypeVar("T")
Write = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """A job to submit: its script, arguments and environment, and where its code comes from."""

    script: str
    args: Sequence[str] = ()
    # The output folder that the script is given, or None if it has none.
    out: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    # The folder to upload; None uploads what git tracks of the checkout that holds the script.
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


def address_of(given: str | None) -> str:
    """Return the URL of the dashboard: as given, else from the environment, else local.

    Raises ConfigError if it is not the address of a dashboard.
    """
    name, address = "--address", given
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if address is None and os.environ.get(variable):
            name, address = variable, os.environ[variable]
    if address is None:
        return DEFAULT_ADDRESS
    if "://" not in address and name == "--address":
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{name} {address}: not a dashboard; give --address http://HEAD:8265 (jobs are not "
            "accepted at ray:// or at the port of the cluster itself)"
        )
    return address.rstrip("/")


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
        if _probe(address) in (401, 403) and (
            os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        ):
            # The user has given a token, so use it.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Ray prefers this variable to any argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        from ray.job_submission import JobSubmissionClient

        # Each of these loggers sets its own level, so one level for all is not enough.
        for name in CLIENT_LOGGERS:
            logging.getLogger(f"ray.{name}").setLevel(logging.CRITICAL)
        self._client: Any = self._ask(lambda: JobSubmissionClient(address))
        # Ray's client sets no timeout; keyword arguments passed here reach `requests`. The method
        # is private: tests/test_cli_submit.py fails when Ray changes it.
        self._client._do_request = functools.partial(
            self._client._do_request, timeout=(CONNECT_S, ANSWER_S)
        )

    def submit(self, order: Order, *, write: Write) -> str:
        """Submit the job and return its id; `write` gets a line on what is uploaded.

        Raises ResumeError while a job with this OUT runs.
        """
        if not order.upload:
            return self._submit(order, order.script, runtime_env(order, folder=None))
        with upload.staged(order.script, order.working_dir) as what:
            write(what.summary)
            return self._submit(order, what.script, runtime_env(order, folder=what.folder))

    def _submit(self, order: Order, script: str, env: dict[str, Any]) -> str:
        base = base_id(order.out)
        attempts = self._attempts(base)
        for job in attempts.values():
            if job.status not in ENDED:
                raise self._busy(job.submission_id, str(job.status))
        number = 1 + max(attempts, default=0)
        submission_id = base if number == 1 else f"{base}-{number}"
        # The id appears in the job's log lines and metrics.
        env["env_vars"].setdefault(RUN_ID_VARIABLE, submission_id)
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=shlex.join(["python", script, *order.args]),
                    runtime_env=env,
                    submission_id=submission_id,
                )
            )
        except PreflightError:
            if submission_id in {job.submission_id for job in self._attempts(base).values()}:
                raise self._busy(submission_id, "submitted a moment ago") from None
            raise
        return submission_id

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
        message = "" if info.driver_exit_code is not None else _line(info.message or "")
        return JobStatus(submission_id, status, code, message)

    def follow(self, submission_id: str, *, write: Write) -> JobStatus:
        """Pass the log to `write`, from its beginning, until the job ends; return its state."""
        self.status(submission_id)
        asyncio.run(self._tail(submission_id, write))
        return self.status(submission_id)

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

    async def _tail(self, submission_id: str, write: Write) -> None:
        """Write the log as it comes; after a broken connection, only its new part."""
        import aiohttp

        seen, heard = 0, time.monotonic()
        while True:
            position = 0
            try:
                async for text in self._client.tail_job_logs(submission_id):
                    if new := text[max(0, seen - position) :]:
                        write(new)
                    position += len(text)
                    seen, heard = max(seen, position), time.monotonic()
                if self.status(submission_id).exit_code is not None:
                    return
                # The job exists and has not started yet.
                heard = time.monotonic()
            except (RuntimeError, OSError, aiohttp.ClientError, PreflightError) as error:
                if time.monotonic() - heard > LOST_S:
                    raise PreflightError(
                        f"{self._address}: the connection to job {submission_id} is lost "
                        f"({_line(str(error))}); the job may still run: follow it again with "
                        f"--follow {submission_id}"
                    ) from None
            await asyncio.sleep(PAUSE_S)

    def _ask(self, call: Callable[[], T], *, job: str | None = None) -> T:
        """Call Ray's client and turn its failures into PreflightError or InputError."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return call()
        except AuthenticationError:
            problem = "rejected the" if _has_token() else "requires an"
            raise PreflightError(
                f"{self._address}: the cluster {problem} authentication token; set RAY_AUTH_MODE="
                "token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None
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
                f"{self._address}: {_line(text)}; check the cluster's dashboard"
            ) from None


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(given) or (Path.home() / ".ray" / "auth_token").is_file()


def _probe(address: str) -> int:
    """Return the HTTP status of the dashboard; Ray's own client would wait for it for ever."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_S) as answer:  # noqa: S310  (http, see address_of)
            json.load(answer)["ray_version"]
            return int(answer.status)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return error.code
        reason = f"HTTP {error.code}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = _line(str(getattr(error, "reason", error)))
    raise PreflightError(
        f"{address}: no Ray dashboard answers ({reason}); give --address http://HEAD:8265, and "
        "check that the cluster was started with its dashboard (ray[default])"
    )


def _line(text: str) -> str:
    """Return the most useful line of a message: the last of a traceback, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return lines[-1] if "Traceback" in text else lines[0]
