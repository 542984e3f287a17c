"""The planning pages under `/ui/`: static files of the package that call the public API and nothing else.

They are served with headers that keep them so: a browser lets them load and ask nothing but this service, run no script that
is not a file of theirs, and show them in no other page's frame. They hold no data, so they need no key; what they ask does.
"""

from __future__ import annotations

import os
from pathlib import Path

from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGES_DIR = Path(__file__).parent / "pages"
# Plotly sets styles on what it draws.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A file below vendor/ has its version in its name; all others are asked for again, and mostly answered by "not modified".
_KEPT, _ASKED_AGAIN = "public, max-age=31536000, immutable", "no-cache"


class _Pages(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        vendored = Path(full_path).parent.name == "vendor"
        response.headers["Cache-Control"] = _KEPT if vendored else _ASKED_AGAIN
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def routes() -> list[Mount | Route]:
    """`/ui/` and a way there from `/`."""
    return [
        Route("/", lambda request: RedirectResponse(request.url_for("ui", path="/").path), name="front"),
        Mount("/ui", _Pages(directory=PAGES_DIR, html=True), name="ui"),
    ]
