"""What every record of the contract checks of its fields: an error names the field, the limit and the mend."""

from __future__ import annotations

CONTRACT_VERSION = 1
# No length, size or rate of a run comes near; beyond it a number is a slip.
LARGEST_NUMBER = 1e18
MAX_SEED = 2**63 - 1
# Names of corpora, cohorts and designs: they become file names, so they cannot leave a folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
# Bumped by any change that alters the numbers a spec produces; stored with every run.
ENGINE_NUMERICS_VERSION = 1


class SpecError(ValueError):
    """A field of a spec is wrong; ``field`` names it, the message also the limit and the mend."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def require(condition: bool, field: str, value: object, limit: str, mend: str) -> None:
    if not condition:
        raise SpecError(field, f"is {value!r}, but {limit}; {mend}")


def require_version(version: int) -> None:
    require(
        version == CONTRACT_VERSION,
        "version",
        version,
        f"this program reads {CONTRACT_VERSION}",
        "run it with the growthlaw that wrote it",
    )


def require_positive(owner: object, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        ok = isinstance(value, (int, float)) and 0 < value < LARGEST_NUMBER
        require(ok, field, value, f"it must lie above 0 and below {LARGEST_NUMBER:g}", f"give a positive {field}")
