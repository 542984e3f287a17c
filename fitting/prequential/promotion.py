"""Whether a newly fitted version answers from now on.

    promote  <=>  u <= 0.003 nats,   u the upper end of the 80% interval of  mean(WIS of refits - WIS of the active version)

"Refits" is the line of newest versions: each case since the active one was predicted by the newest version that had not seen
it. The line stands for "refit and follow", and only cases predicted by both sides count. A tie (0.003 nats) passes, so an
equally good version that has seen more runs goes in; a difference that the cases cannot tell from a loss waits.

Before a cohort has :data:`FAMILIES_TO_COMPARE` trunk families, or while the active version is provisional, there is nothing
to compare by: the newest version answers, and says so. A version that rests on runs since removed or corrected is replaced
at once: evidence that was withdrawn is no ground to wait on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fitting.conventions import TIE_NATS
from fitting.guideline import Guideline
from fitting.prequential.scoring import Comparison

Outcome = Literal["first", "newest", "promoted", "waits", "rejected", "replaces_withdrawn", "pinned"]

# A cluster bootstrap of fewer families says little; it is cautious only from about here on.
FAMILIES_TO_COMPARE = 5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome for one version, whether it answers, and why in a sentence."""

    outcome: Outcome
    is_active: bool
    reason: str


def judge(
    candidate: Guideline,
    active: Guideline | None,
    comparison: Comparison | None,
    *,
    num_families: int,
    withdrawn: Sequence[str] = (),
    is_pinned: bool = False,
) -> Verdict:
    """Decide on a candidate.

    Args:
        active: the version that answers now; None where none does.
        comparison: refits against ``active`` on the cases that both predicted unseen.
        num_families: trunk families among the cohort's cases.
        withdrawn: runs behind ``active`` that were since removed or corrected (ids, or a word for them).
        is_pinned: ``active`` was put there by hand and stays.
    """
    made = "provisional: it only reports what was observed" if candidate.provisional else "fitted"
    if active is None:
        return Verdict(
            outcome="first", is_active=True, reason=f"{made}; no version answered, so there is nothing to compare with"
        )
    name = f"version {active.version}"
    seen = "" if comparison is None else _told(comparison, name)
    rests = f"rests on what was removed or corrected since ({_listed(withdrawn)})" if withdrawn else ""
    if is_pinned:
        although = f", although it {rests}" if rests else ""
        reason = f"{made}; {name} was activated by hand and stays{although}{seen and ': ' + seen}"
        return Verdict(outcome="pinned", is_active=False, reason=reason)
    if withdrawn:
        return Verdict(outcome="replaces_withdrawn", is_active=True, reason=f"{made}; {name} {rests}")
    if active.provisional:
        return Verdict(
            outcome="newest", is_active=True, reason=f"{made}; {name} was provisional, so the newest answers"
        )
    if num_families < FAMILIES_TO_COMPARE:
        return Verdict(
            outcome="newest",
            is_active=True,
            reason=f"{made}; {num_families} of the {FAMILIES_TO_COMPARE} trunk families that a comparison takes are there, so "
            "the newest version answers",
        )
    if comparison is None or comparison.num_families < FAMILIES_TO_COMPARE:
        there = 0 if comparison is None else comparison.num_families
        return Verdict(
            outcome="waits",
            is_active=False,
            reason=f"{made}; {name} stays until {FAMILIES_TO_COMPARE} trunk families were predicted unseen by it and by newer "
            f"refits, {there} so far{seen and ': ' + seen}",
        )  # fmt: skip
    low, high = comparison.interval_nats
    if high <= TIE_NATS:
        better = "better" if high < 0 else f"no worse by more than a tie ({TIE_NATS} nats)"
        return Verdict(outcome="promoted", is_active=True, reason=f"{made}; {better}: {seen}")
    worse = "worse" if low > 0 else f"not shown to be no worse (up to {high:.4f} nats)"
    return Verdict(outcome="rejected", is_active=False, reason=f"{made}; {worse}, so {name} stays: {seen}")


def _told(comparison: Comparison, name: str) -> str:
    low, high = comparison.interval_nats
    return (
        f"refits scored {comparison.difference_nats:+.4f} nats ({low:+.4f} to {high:+.4f}) against {name} on "
        f"{comparison.num_cases} unseen pairs of {comparison.num_families} families"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
