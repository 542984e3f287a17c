"""What a table of runs cannot tell about growth timing and growth factor, by name and number.

A timing law d*(N, C, g) needs three sizes, three budgets over 1.5 decades, four timings (d = 0, which is the scratch
control, and one clearly too late among them), two factors and a repeated seed. Absolute losses of other sizes need a
scratch law: three sizes and three token counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fitting.guideline import Noise, ObservedPair, ObservedSingle

SIZES_NEEDED = 3
BUDGETS_NEEDED = 3
DECADES_NEEDED = 1.5
TIMINGS_NEEDED = 4
FACTORS_NEEDED = 2
# "Clearly too late" and "a real difference" mean more than this many standard deviations of a difference of two runs.
_CLEAR = 2.0


def cannot_identify(
    pairs: Iterable[ObservedPair], singles: Iterable[ObservedSingle], noise: Noise, num_unpaired: int = 0
) -> tuple[str, ...]:
    """Sentences, each naming one thing the runs cannot identify and what it would take."""
    pairs, singles = tuple(pairs), tuple(singles)
    found: list[str] = []
    if not pairs:
        found.append("whether growth helps: no grown run with a scratch control at equal FLOPs was found, 1 needed")
    found += _timing(pairs, noise)
    num_sizes = len({pair.target_params for pair in pairs})
    if num_sizes < SIZES_NEEDED:
        found.append(
            f"how timing and gain change with size: {_count(num_sizes, 'target size')} found, {SIZES_NEEDED} needed"
        )
    found += _budgets(pairs)
    num_factors = len({round(pair.growth_factor, 2) for pair in pairs})
    if num_factors < FACTORS_NEEDED:
        found.append(f"the best growth factor: {_count(num_factors, 'factor')} found, {FACTORS_NEEDED} needed")
    if not noise.measured:
        found.append("the seed noise: every design was run with 1 seed, a repeat is needed")
    num_single_sizes = len({single.params for single in singles})
    num_tokens = len({single.tokens for single in singles})
    if num_single_sizes < SIZES_NEEDED or num_tokens < BUDGETS_NEEDED:
        found.append(
            f"a scratch law, and with it losses at other sizes and budgets: {_count(num_single_sizes, 'size')} and "
            f"{_count(num_tokens, 'token count')} found, {SIZES_NEEDED} and {BUDGETS_NEEDED} needed"
        )
    if num_unpaired:
        found.append(
            f"the gain of {_count(num_unpaired, 'grown design')}: no scratch control at equal FLOPs (within 1%)"
        )
    return tuple(found)


def _timing(pairs: tuple[ObservedPair, ...], noise: Noise) -> list[str]:
    """d = 0 is scratch, so every pair brings it along."""
    best_count, too_late = 0, False
    groups: dict[tuple[float, float, float], list[ObservedPair]] = {}
    for pair in pairs:
        key = (pair.target_params, round(math.log(pair.compute_flops), 1), round(pair.growth_factor, 2))
        groups.setdefault(key, []).append(pair)
    clear = _CLEAR * math.sqrt(2) * noise.sd_nats
    for group in groups.values():
        by_timing = sorted(group, key=lambda pair: pair.growth_timing_tokens)
        num_timings = 1 + len({pair.growth_timing_tokens for pair in by_timing})
        best_count = max(best_count, num_timings)
        lowest = min(pair.grown_loss_nats for pair in by_timing)
        too_late = too_late or by_timing[-1].grown_loss_nats > lowest + clear
    if best_count >= TIMINGS_NEEDED and too_late:
        return []
    grown = max(0, best_count - 1)
    problem = (
        f"{_count(grown, 'timing')} besides scratch (d = 0) found, {TIMINGS_NEEDED - 1} needed "
        "incl. one clearly too late"
    )
    if best_count >= TIMINGS_NEEDED:
        problem = f"{_count(grown, 'timing')} found, but none clearly too late, so the best may lie beyond them"
    return [f"the best timing d* and its near-optimal range: {problem}"]


def _budgets(pairs: tuple[ObservedPair, ...]) -> list[str]:
    budgets = sorted({pair.compute_flops for pair in pairs})
    distinct = [budget for i, budget in enumerate(budgets) if i == 0 or budget > 1.05 * budgets[i - 1]]
    decades = math.log10(distinct[-1] / distinct[0]) if distinct else 0.0
    if len(distinct) >= BUDGETS_NEEDED and decades >= DECADES_NEEDED:
        return []
    return [
        f"an exponent of d* or of the gain in compute: {_count(len(distinct), 'budget')} over {decades:.1f} decades "
        f"found, {BUDGETS_NEEDED} over {DECADES_NEEDED} needed"
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
