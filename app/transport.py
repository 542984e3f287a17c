"""How the client's requests travel: with the key, and once more where that cannot do anything twice.

A request is *repeatable* where its second coming does nothing new: it only asks, or it carries an Idempotency-Key. It is sent
again after any failure to connect or to answer and after 429, 502, 503 and 504. What is not repeatable is sent again only where
it certainly did nothing: no connection came about, or the service said so itself (429, 503).

ServiceError
├── NoService          nothing answers at the URL
└── Refused            the service answered with a problem: `.status`, `.problem` (RFC 9457)
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

Json = dict[str, Any]

# A service that never answered most likely is not there: its user is told after this long.
FIRST_CONTACT_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 2.0
RETRIED_STATUSES = (429, 502, 503, 504)
# The service itself says that it did nothing; 502 and 504 are a proxy's, which does not know.
_DID_NOTHING = (429, 503)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServiceError(Exception):
    """A call to the service failed; the message is for people."""


class NoService(ServiceError):
    pass


class Refused(ServiceError):
    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status, self.problem = status, problem


class Transport:
    """One connection pool.

    Args:
        api_key: the token; none where empty.
        timeout_seconds: of one attempt.
        retry_seconds: how long after the first attempt another may still begin; 0 tries once.

    Attributes:
        answered: whether anything ever answered at the URL.
    """

    def __init__(self, url: str, api_key: str, *, timeout_seconds: float, retry_seconds: float) -> None:
        self.url, self._retry_seconds = url, retry_seconds
        self.answered = False
        host = urlsplit(url)
        self.http = httpx.Client(
            base_url=url,
            timeout=timeout_seconds,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            # A loopback service is never meant to be reached through a proxy of the environment.
            trust_env=host.hostname not in _LOOPBACK,
            # With SSL_CERT_FILE of the environment, for certificates of a team's own.
            verify=httpx.create_ssl_context() if host.scheme == "https" else False,
        )

    def call(self, method: str, path: str, *, repeatable: bool, **request: Any) -> Any:
        """The answer's JSON.

        Raises:
            NoService, Refused, ServiceError: as above, after the last attempt.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                response = self.http.request(method, path, **request)
            except httpx.TransportError as error:
                pause = self._pause(attempt, started) if repeatable or isinstance(error, _NEVER_SENT) else None
                if pause is None:
                    raise NoService(
                        f"no Growthlaw service answers at {self.url} ({error}); start one with `growthlaw serve`, or set "
                        "GROWTHLAW_URL"
                    ) from None
            else:
                self.answered = True
                status = response.status_code
                again = status in RETRIED_STATUSES if repeatable else status in _DID_NOTHING
                pause = self._pause(attempt, started, retry_after(response.headers)) if again else None
                if pause is None:
                    return read(response)
            time.sleep(pause)
            attempt += 1

    def _pause(self, attempt: int, started: float, asked: float = 0.0) -> float | None:
        """Seconds until the next attempt, as long as the service asked for at least; None where it would come too late."""
        # Many clients of one service that restarts must not come back at the same moment.
        pause = max(asked, min(LONGEST_PAUSE_SECONDS, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
        limit = self._retry_seconds if self.answered else min(self._retry_seconds, FIRST_CONTACT_SECONDS)
        return pause if time.monotonic() - started + pause <= limit else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After asks for, as a number or as a date; 0 without one."""
    said = headers.get("retry-after", "")
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def read(response: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        Refused: it is an error.
        ServiceError: it is no JSON.
    """
    if response.status_code == 204:
        return {}
    try:
        answer = response.json()
    except ValueError:
        answer = None
        if not response.is_error:
            raise ServiceError(
                f"the answer of {response.url} (HTTP {response.status_code}) is not JSON; is that a Growthlaw service?"
            ) from None
    if response.is_error:
        unknown = {"detail": f"{response.url} answered HTTP {response.status_code} {response.reason_phrase}".strip()}
        raise Refused(response.status_code, answer if isinstance(answer, dict) else unknown)
    return answer
