"""Ray's dashboard over plain HTTP: the Jobs API and the node pages, with a token, and without Ray installed.

::

    OSError
    └── RayAwayError         nobody answers as Ray does, for now: the address, the network, the head
        └── RayRefusedError  Ray is there and refuses the token

Every request has small timeouts, and for :data:`SECONDS_BETWEEN_TRIES` after one that nobody answered the others fail at
once: a launcher loop with a hundred jobs must not wait a hundred times for a head that is down. Paths and fields are those
of Ray 2.50 to 2.60 (``ray/dashboard/modules/job/job_head.py``, ``node/node_head.py``).
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import SecretStr

from fitting.errors import InputError

TIMEOUT = httpx.Timeout(5.0, connect=1.0)
SECONDS_BETWEEN_TRIES = 2.0
_LONGEST_ANSWER_TOLD = 200


class RayAwayError(OSError):
    """Nobody answers as Ray does, for now; the message says where and how."""


class RayRefusedError(RayAwayError):
    """Ray refuses the token; the message says what to set."""


class RayToken:
    """The token that a Ray cluster with ``RAY_AUTH_MODE=token`` asks for; never shown.

    Args:
        value: the token itself.
        path: a file that holds it, read for every request: a token that was exchanged works at once.

    Raises:
        InputError: both are given.
    """

    def __init__(self, value: SecretStr | None = None, path: Path | None = None) -> None:
        if value is not None and path is not None:
            raise InputError("GROWTHLAW_RAY_TOKEN", "is set, and GROWTHLAW_RAY_TOKEN_FILE too", "keep one of them")
        self._value, self._path = value, path

    def headers(self) -> dict[str, str]:
        """The header of a request, or none where the cluster has no token.

        Raises:
            RayRefusedError: the file cannot be read.
        """
        token = self._value.get_secret_value() if self._value is not None else None
        if self._path is not None:
            try:
                token = self._path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text"
                raise RayRefusedError(f"GROWTHLAW_RAY_TOKEN_FILE {self._path} cannot be read: {why}") from None
        token = (token or "").strip()
        if not token:
            return {}
        if not token.isascii() or not token.isprintable():
            raise RayRefusedError("the token for Ray holds characters that no HTTP header can; set the one Ray has")
        return {"Authorization": f"Bearer {token}"}


def checked_address(address: str) -> str:
    """``http(s)://host:port`` of a Ray dashboard, without a slash at its end.

    Raises:
        InputError: it is anything else; a password in it is not repeated.
    """
    mend = "give the dashboard's, such as http://ray-head:8265"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise InputError("GROWTHLAW_RAY_ADDRESS", "is no URL", mend) from None
    if parts.username is not None or parts.password is not None:
        raise InputError("GROWTHLAW_RAY_ADDRESS", "holds a user or password", "use GROWTHLAW_RAY_TOKEN for the secret")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError("GROWTHLAW_RAY_ADDRESS", f"is {address!r}, not http(s)://host:port", mend)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 8265 if parts.scheme == "http" else 443
    return f"{parts.scheme}://{host}:{port or default}{parts.path.rstrip('/')}"


class RayApi:
    """A connection to one Ray cluster. May be used by several threads."""

    def __init__(self, address: str, token: RayToken) -> None:
        self.address = checked_address(address)
        self._token = token
        self._http = httpx.Client(base_url=self.address, timeout=TIMEOUT)
        self._lock = threading.Lock()
        self._trouble: RayAwayError | None = None
        self._tried_at = 0.0
        self._away_since: float | None = None

    def __repr__(self) -> str:
        return f"RayApi({self.address!r})"

    def close(self) -> None:
        self._http.close()

    @property
    def seconds_away(self) -> float:
        """For how long nobody has answered; 0 while Ray does, and while it is there and refuses the token."""
        with self._lock:
            return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    # --- what is asked ---------------------------------------------------------------------------------------

    def version(self) -> str:
        """Ray's version.

        Raises:
            RayAwayError: nobody answers, or somebody who is not Ray.
        """
        answer = self._ask("GET", "/api/version")
        if answer.status_code == 404:
            raise RayAwayError(f"{self.address} answers, but is no Ray dashboard: GROWTHLAW_RAY_ADDRESS must name one")
        return str(self._json(answer)["ray_version"])

    def job(self, submission_id: str) -> dict[str, Any] | None:
        """A submitted job's details; None where this cluster never heard of it."""
        answer = self._ask("GET", f"/api/jobs/{quote(submission_id, safe='')}")
        # A proxy whose head is away may say 404 too, but not in Ray's words.
        if answer.status_code == 404 and "does not exist" in answer.text:
            return None
        return self._json(answer)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that the cluster remembers, those of others among them."""
        found = self._json(self._ask("GET", "/api/jobs/"))
        return [job for job in found if isinstance(job, dict)]

    def submit(self, body: dict[str, Any]) -> None:
        self._json(self._ask("POST", "/api/jobs/", body))

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop a job: SIGTERM, then SIGKILL. Does nothing to one that it does not know."""
        answer = self._ask("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")
        if answer.status_code != 404:
            self._json(answer)

    def log(self, submission_id: str) -> str:
        """What the job's entrypoint printed; empty where Ray has none."""
        answer = self._ask("GET", f"/api/jobs/{quote(submission_id, safe='')}/logs")
        return str(self._json(answer).get("logs") or "") if answer.status_code == 200 else ""

    def nodes(self) -> dict[str, Any]:
        """The dashboard's summary of all nodes (``summary``) and their logical resources (``nodeLogicalResources``)."""
        data: dict[str, Any] = self._json(self._ask("GET", "/nodes?view=summary"))["data"]
        return data

    def actors(self, ray_job_id: str) -> list[dict[str, Any]]:
        """The living actors of a Ray job (its ``job_id``, not the submission's)."""
        path = f"/api/v0/actors?filter_keys=job_id&filter_predicates=%3D&filter_values={quote(ray_job_id, safe='')}"
        found = self._json(self._ask("GET", f"{path}&limit=10000"))["data"]["result"]["result"]
        return [actor for actor in found if actor.get("state") == "ALIVE"]

    # --- how -------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        with self._lock:
            if self._trouble is not None and time.monotonic() - self._tried_at < SECONDS_BETWEEN_TRIES:
                # A new one: the same one raised again and again would drag an ever longer traceback along.
                raise type(self._trouble)(str(self._trouble))
        try:
            headers = self._token.headers()
            answer = self._http.request(method, path, headers=headers, json=body)
        except httpx.HTTPError as error:
            raise self._note(RayAwayError(f"Ray at {self.address} does not answer ({_words(error)})")) from None
        except RayRefusedError as error:
            raise self._note(error) from None
        if answer.status_code in (401, 403):
            what = "refuses the token" if headers else "asks for a token"
            raise self._note(
                RayRefusedError(
                    f"Ray at {self.address} {what} ({answer.status_code}); set GROWTHLAW_RAY_TOKEN, or the content of "
                    "GROWTHLAW_RAY_TOKEN_FILE, to the token that the cluster was started with"
                )
            )
        if answer.status_code in (502, 503, 504):
            raise self._note(RayAwayError(f"Ray at {self.address} is away (HTTP {answer.status_code})"))
        with self._lock:
            self._trouble = self._away_since = None
        return answer

    def _note(self, trouble: RayAwayError) -> RayAwayError:
        with self._lock:
            self._trouble, self._tried_at = trouble, time.monotonic()
            if isinstance(trouble, RayRefusedError):
                self._away_since = None
            elif self._away_since is None:
                self._away_since = self._tried_at
        return trouble

    def _json(self, answer: httpx.Response) -> Any:
        told = " ".join(answer.text[-_LONGEST_ANSWER_TOLD:].split())
        if answer.status_code == 400:
            raise OSError(f"Ray at {self.address} refuses the request: {told}")
        if answer.status_code != 200:
            raise RayAwayError(f"Ray at {self.address} answers HTTP {answer.status_code}: {told}")
        try:
            return answer.json()
        except ValueError:
            raise RayAwayError(f"{self.address} does not answer as Ray does: {told!r}") from None


def _words(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
