"""The dashboard of a Ray cluster, which takes its jobs: where it is, and the token it asks for."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from cctmn.errors import ConfigError, PreflightError

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
# The dashboard must accept a connection within this time.
CONNECT_S: Final = 5.0
# Where Ray looks for a token, in this order; the last one is a file below the home folder.
TOKEN: Final = "RAY_AUTH_TOKEN"  # noqa: S105  (a name, as the next two)
TOKEN_PATH: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
TOKEN_FILE: Final = ".ray/auth_token"  # noqa: S105
MODE: Final = "RAY_AUTH_MODE"


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


def probe(address: str) -> int:
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
        reason = first_line(str(getattr(error, "reason", error)))
    raise PreflightError(
        f"{address}: no Ray dashboard answers ({reason}); give --address http://HEAD:8265, and "
        "check that the cluster was started with its dashboard (ray[default])"
    )


def use_token() -> None:
    """Let Ray's client send a token if there is one and the user has not chosen a mode.

    Raises ConfigError if RAY_AUTH_TOKEN_PATH names no file with a token.
    """
    if token_source():
        os.environ.setdefault(MODE, "token")


def token_source() -> str:
    """Return where Ray finds the token that it sends, "" if there is none.

    Raises ConfigError if RAY_AUTH_TOKEN_PATH names no file with a token.
    """
    if os.environ.get(TOKEN):
        return TOKEN
    if path := os.environ.get(TOKEN_PATH):
        if not _has_text(Path(path)):
            raise ConfigError(
                f"{TOKEN_PATH}: no file with a token; correct it, or unset it for ~/{TOKEN_FILE}",
                names=path,
            )
        return f"{TOKEN_PATH}={path}"
    home = os.environ.get("HOME", "")
    return f"~/{TOKEN_FILE}" if home and _has_text(Path(home, TOKEN_FILE)) else ""


def token_error(address: str) -> PreflightError:
    """Return the error for a cluster that has refused a request for its token."""
    mode = os.environ.get(MODE, "")
    if not (source := token_source()):
        return PreflightError(
            f"{address}: the cluster asks for a token, and there is none in {TOKEN}, {TOKEN_PATH} "
            f"or ~/{TOKEN_FILE}; put the cluster's token into one of them"
        )
    if mode.lower() != "token":
        return PreflightError(
            f"{address}: the cluster asks for a token, and with {MODE}={mode} none is sent; unset "
            f"{MODE}"
        )
    return PreflightError(
        f"{address}: the cluster rejects the token of {source}; get the token of this cluster "
        f"({TOKEN} is used before {TOKEN_PATH}, and that before ~/{TOKEN_FILE})"
    )


def first_line(text: str) -> str:
    """Return the most useful line of a message: the last of a traceback, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return lines[-1] if "Traceback" in text else lines[0]


def _has_text(path: Path) -> bool:
    try:
        return bool(path.read_text().strip())
    except (OSError, ValueError):
        return False
