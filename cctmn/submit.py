"""Jobs of a cluster: submit, follow and stop them through Ray's Jobs API.

In: a script of jobs/ with its arguments, the address of a dashboard. Out: a job whose id comes from
its OUT, so that two of them cannot write there at once; its log; its exit code. Ray gives an id
once only, which decides between two that submit in the same moment: both have counted the same
earlier attempts, so both ask for the same id.
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

from cctmn import store
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
CONNECT_S: Final = 5.0  # for a first answer of the dashboard
ANSWER_S: Final = 120.0  # of one that is there; it may be busy unpacking an upload
LOST_S: Final = 60.0  # without a word from a job that is followed
PAUSE_S: Final = 1.0
STOP_WAIT_S: Final = 30  # Ray's 3 s are too short to give up the lock and end tidily

# What the nodes need to reach the same storage; keys are not passed on unless they are given.
PASSED_ON: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
# As .gitignore writes it; a slash in front holds a name to the top of the folder.
EXCLUDED: Final = (
    ".git",
    ".venv",
    "/build",
    "/demo",
    "/dist",
    "/out",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
)
OUT_OPTION: Final = re.compile(r"(?:--out=|-q*o=?)(?P<value>.+)", re.DOTALL)
CHATTY: Final = (
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
    """What to run, with what, and where its code comes from."""

    script: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None  # None: the checkout that holds the script
    upload: bool = True  # False: the cluster's image has cctmn, and the script is a path in it


@dataclass(frozen=True)
class Outcome:
    """How a job stands or ended."""

    id: str
    status: str  # Ray's word for it
    exit_code: int | None  # None while it runs
    message: str = ""


def address_of(given: str | None) -> str:
    """URL of the dashboard: the one given, that of the environment, or of this machine."""
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
            f"{name} {address}: not a dashboard; give --address http://HEAD:8265 (ray:// and the "
            "port of the cluster itself take no jobs)"
        )
    return address.rstrip("/")


def out_of(args: Sequence[str]) -> str | None:
    """The OUT among the arguments of a script, in one spelling; None if it has none."""
    out = None
    for number, arg in enumerate(args):
        if arg == "--":
            break
        if arg in ("-o", "--out") or re.fullmatch("-q+o", arg):
            out = args[number + 1] if number + 1 < len(args) else None
        elif match := OUT_OPTION.fullmatch(arg):
            out = match["value"]
    if out is None:
        return None
    if not store.is_absolute(out):
        raise ConfigError(
            f"OUT {out}: a job's own folder goes away with it; give s3://... or the absolute path "
            "of a folder that all nodes share"
        )
    return store.to_uri(out).rstrip("/")


def base_id(args: Sequence[str]) -> str:
    """The id of all jobs with this OUT, without the number of the attempt."""
    out = out_of(args)
    name = secrets.token_hex(6) if out is None else hashlib.sha256(out.encode()).hexdigest()[:12]
    return f"cctmn-{name}"


def runtime_env(order: Order) -> tuple[dict[str, Any], str]:
    """Ray's runtime environment for the job, and the script as the job finds it."""
    env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    for name in PASSED_ON:
        value = os.environ.get(name)
        if value and urlsplit(value).username is None:  # http://user:password@host is a secret
            env[name] = value
    made: dict[str, Any] = {"env_vars": env | dict(order.env)}
    if not order.upload:
        return made, order.script
    folder, script = _local(order)
    made["working_dir"] = folder
    if "://" not in folder:
        made["excludes"] = list(EXCLUDED)
    return made, script


def _local(order: Order) -> tuple[str, str]:
    """The folder to upload, and the script below it."""
    if order.working_dir is not None and "://" in order.working_dir:
        return order.working_dir, order.script
    script = Path(order.script).absolute()
    if order.working_dir is not None:
        folder = Path(order.working_dir).absolute()
        if not script.is_relative_to(folder) or not script.is_file():
            script = folder / order.script
    else:
        above = [p for p in script.parents if (p / "pyproject.toml").is_file()]
        folder = above[0] if above else script.parent
    if not script.is_file():
        raise InputError(
            f"{order.script}: no such script; with --no-upload it is a path in the cluster's image"
        )
    return str(folder), script.relative_to(folder).as_posix()


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Raises PreflightError, within CONNECT_S, if no dashboard answers there or it refuses."""
        self._address = address
        if _knock(address) in (401, 403) and (
            os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        ):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # a token given is one to be used
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray heeds this before any argument
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:  # each sets its own level; what they raise, we say in one line
            logging.getLogger(f"ray.{name}").setLevel(logging.CRITICAL)
        self._client: Any = self._ask(lambda: JobSubmissionClient(address))
        # Ray's client waits for ever; what it is given here it hands to `requests`
        self._client._do_request = functools.partial(
            self._client._do_request, timeout=(CONNECT_S, ANSWER_S)
        )

    def submit(self, order: Order) -> str:
        """Submit and return the id. Raises ResumeError while a job with the same OUT lives."""
        env, script = runtime_env(order)
        base = base_id(order.args)
        attempts = self._attempts(base)
        for job in attempts.values():
            if job.status not in ENDED:
                raise self._taken(job.submission_id, str(job.status))
        number = 1 + max(attempts, default=0)
        submission_id = base if number == 1 else f"{base}-{number}"
        env["env_vars"].setdefault(RUN_ID_VARIABLE, submission_id)  # in its log lines and metrics
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
                raise self._taken(submission_id, "submitted a moment ago") from None
            raise
        return submission_id

    def outcome(self, submission_id: str) -> Outcome:
        """How the job stands. Raises InputError if the cluster does not know it."""
        info = self._ask(lambda: self._client.get_job_info(submission_id), job=submission_id)
        status, code = str(info.status), info.driver_exit_code
        if status not in ENDED:
            return Outcome(submission_id, status, None)
        if status == "STOPPED":
            code = EXIT_STOPPED
        elif code is None:  # neither did the script run to an end: its node died, or its upload
            code = EXIT_OK if status == "SUCCEEDED" else EXIT_REFUSED
        elif code < 0:
            code = 128 - code  # by a signal, as a shell counts
        # the end of the log is in the message of a script that ran, and in the log
        message = "" if info.driver_exit_code is not None else _line(info.message or "")
        return Outcome(submission_id, status, code, message)

    def follow(self, submission_id: str, *, write: Write) -> Outcome:
        """Hand the log to `write`, from its beginning, until the job ends."""
        self.outcome(submission_id)
        asyncio.run(self._tail(submission_id, write))
        return self.outcome(submission_id)

    def stop(self, submission_id: str) -> Outcome:
        """Stop the job, and wait until it has ended; one that has already ended stays as it is."""
        self.outcome(submission_id)
        self._ask(lambda: self._client.stop_job(submission_id), job=submission_id)
        end = time.monotonic() + 2 * STOP_WAIT_S
        while (now := self.outcome(submission_id)).exit_code is None and time.monotonic() < end:
            time.sleep(PAUSE_S)
        return now

    def _attempts(self, base: str) -> dict[int, Any]:
        """Jobs with this OUT that the cluster knows, by their number."""
        found = {}
        for job in self._ask(self._client.list_jobs):
            if match := re.fullmatch(rf"{base}(?:-(\d+))?", job.submission_id or ""):
                found[int(match[1] or 1)] = job
        return found

    def _taken(self, submission_id: str, status: str) -> ResumeError:
        where = "" if self._address == DEFAULT_ADDRESS else f" --address {self._address}"
        return ResumeError(
            f"job {submission_id} ({status}) writes to this OUT; follow it with `cctmn submit"
            f"{where} --follow {submission_id}`, stop it with `--stop {submission_id}`"
        )

    async def _tail(self, submission_id: str, write: Write) -> None:
        """The log's text as it comes; after a broken connection, what is new in it."""
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
                if self.outcome(submission_id).exit_code is not None:
                    return
                heard = time.monotonic()  # it is there, and has not started yet
            except (RuntimeError, OSError, aiohttp.ClientError, PreflightError) as error:
                if time.monotonic() - heard > LOST_S:
                    raise PreflightError(
                        f"{self._address}: lost sight of job {submission_id}, which may run on "
                        f"({_line(str(error))}); come back with --follow {submission_id}"
                    ) from None
            await asyncio.sleep(PAUSE_S)

    def _ask(self, call: Callable[[], T], *, job: str | None = None) -> T:
        """Call Ray's client; its failures in one line of ours."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            return call()
        except AuthenticationError:
            raise PreflightError(
                f"{self._address}: the cluster asks for a token, and "
                f"{'there is none' if not _has_token() else 'this is not it'}; set RAY_AUTH_MODE="
                "token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None
        except (OSError, requests.RequestException) as error:
            raise PreflightError(
                f"{self._address}: the dashboard does not answer ({type(error).__name__}); see "
                "that the cluster runs"
            ) from None
        except (RuntimeError, ValueError) as error:
            text = str(error)
            if job is not None and "status code 404" in text:
                raise InputError(f"{job}: {self._address} knows no such job") from None
            raise PreflightError(f"{self._address}: {_line(text)}") from None


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _knock(address: str) -> int:
    """HTTP status of the dashboard; Ray itself would wait for it without an end."""
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
        f"{address}: no Ray dashboard there ({reason}); give --address http://HEAD:8265, and see "
        "that the cluster was started with its dashboard (ray[default])"
    )


def _line(text: str) -> str:
    """The line of a message that says most: of a traceback the last, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return lines[-1] if "Traceback" in text else lines[0]
