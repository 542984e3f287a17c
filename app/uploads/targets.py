"""Where an export may go: a URL below one that the service's owner allows, on a file system whose package is installed.

A URL never carries a credential: they are the owner's, in the environment of the service (``AWS_...``, ``FSSPEC_...``) or
in ``~/.config/fsspec``. Errors do not repeat a URL that seems to carry one.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from fitting.errors import InputError

# No user, no query, no escapes, no wildcards, no chained protocols: nothing whose meaning depends on who reads it.
_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+-]*)://(?P<path>[A-Za-z0-9._~:/=+-]*)")
_LOCAL = ("file", "local")
SETTING = "GROWTHLAW_EXPORT_URLS"


def checked_prefix(url: str) -> str:
    """One of the URLs that an owner allows, without a slash at its end.

    Raises:
        InputError: it is no plain URL, or nothing can be written there.
    """
    protocol, path = _parse(url, "export_urls")
    _check_package(protocol, "export_urls")
    return f"{protocol}://{path}"


def checked_target(url: str, allowed: Sequence[str], field: str = "url") -> str:
    """A URL to export to, without a slash at its end.

    Raises:
        InputError: it is no plain URL, lies below none of the ``allowed`` ones, or its package is missing.
    """
    protocol, path = _parse(url, field)
    plain = f"{protocol}://{path}"
    if not any(_lies_below(plain, prefix) for prefix in allowed):
        where = ", ".join(allowed) if allowed else "none yet"
        raise InputError(
            field,
            f"is {plain!r}, but the service's owner allows exports below: {where}",
            f"use such a URL, or have the service started with --export-to URL ({SETTING})",
        )
    _check_package(protocol, field)
    return plain


def _parse(url: str, field: str) -> tuple[str, str]:
    found = _URL.fullmatch(url)
    if found is None:
        hidden = url if re.fullmatch(r"[^@?#%]{1,200}", url) else "that URL"
        raise InputError(
            field,
            f"is {hidden!r}, but it must be PROTOCOL://PLACE of letters, digits and . _ ~ : / = + - alone",
            "leave credentials to the service's environment, and give a plain URL such as s3://bucket/folder",
        )
    protocol, path = found["protocol"], found["path"].rstrip("/")
    parts = path.split("/")
    if protocol in _LOCAL and parts[0] == "":
        parts = parts[1:]
    if not path or any(part in ("", ".", "..") for part in parts):
        raise InputError(field, f"is {url!r}, but its path has an empty, '.' or '..' part", "name the folder itself")
    return protocol, path


def _lies_below(url: str, prefix: str) -> bool:
    if not url.startswith(prefix + "/"):
        return False
    protocol, _, path = url.partition("://")
    if protocol not in _LOCAL:
        return True
    # A link inside an allowed folder must not lead out of it.
    root = Path(prefix.partition("://")[2]).resolve()
    return Path(path).resolve().is_relative_to(root)


def _check_package(protocol: str, field: str) -> None:
    if protocol == "memory":
        raise InputError(field, "is on 'memory', which ends with the process", "give a place that lasts")
    from fsspec.registry import known_implementations

    entry = known_implementations.get(protocol)
    if entry is None:
        raise InputError(field, f"begins with {protocol!r}, which fsspec does not know", "use a protocol that it knows")
    package = str(entry["class"]).split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            field,
            f"begins with {protocol!r}, which needs the package {package!r}",
            f"pip install {package} where the service runs",
        )
