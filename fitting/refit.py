"""From a run table to a guideline, deterministic given the rows and the seed.

Every guideline holds the observed pairs at equal FLOPs, the controls, the seed noise (measured, or assumed and said
so), and by name what the runs cannot identify. With too few controls for a scratch law that is all; with them come
draws of the cohort's losses, whose growth terms are borrowed as far as its own pairs do not say them.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from fitting import cells as cells_module
from fitting.cohort_fit import NUM_DRAWS, CohortFit, fit_cohort, fit_own
from fitting.conventions import PAIRS_TO_STAND_ALONE
from fitting.drawn_losses import state_of
from fitting.errors import InputError
from fitting.guideline import Guideline, KnownRange, Noise, ObservedPair, ObservedSingle
from fitting.identifiability import cannot_identify
from fitting.table import data_hash, read_runs


def fit_guideline(
    runs: str | Path | pd.DataFrame,
    cohort: str | None = None,
    *,
    seed: int = 0,
    outer_scores: bool = True,
    num_draws: int = NUM_DRAWS,
) -> Guideline:
    """Fit the guideline of one cohort.

    Args:
        runs: a run table (:func:`fitting.table.read_runs` reads and checks it).
        cohort: the cohort to fit; may be left out where the table holds one.
        seed: of every random draw.
        outer_scores: give the held-out scores; without them the fit takes a fraction of the time and predicts the same.
        num_draws: of the laws' bootstrap.

    Returns:
        The guideline; its ``id`` is a hash of the rows, the seed and the law, so equal input gives an equal id.

    Raises:
        InputError: a bad table, several cohorts and none named, or no finished run with a loss.
    """
    table = read_runs(runs, cohort=cohort, one_cohort=True)
    name = str(table["cohort"].iloc[0])
    used, basis, excluded = cells_module.usable(table)
    if used.empty:
        raise InputError(
            "final_loss", f"is known for no finished run of cohort {name!r} ({_counted(excluded) or 'no runs'})",
            "finish at least one run",
        )  # fmt: skip
    used, num_by_6nd = cells_module.with_compute(used)
    designs = cells_module.cells(used)
    pairs, singles = cells_module.pairs(designs), cells_module.singles(designs)
    noise = cells_module.noise(designs)
    num_unpaired = sum(design.grown for design in designs) - len(pairs)
    digest = data_hash(table)
    law = "observed pairs" if pairs else "controls only"
    fit: CohortFit | None = None
    sentences: tuple[str, ...]
    try:
        fit = (
            fit_own(table, noise, seed=seed, num_draws=num_draws, outer_scores=outer_scores)
            if len(pairs) >= PAIRS_TO_STAND_ALONE
            else None
        )
        fit = fit or fit_cohort(pairs, singles, noise, seed=seed, num_draws=num_draws)
    except ValueError as error:
        sentences = (f"No scratch law was fitted: {error}.",)
    else:
        law, sentences = fit.law, fit.warnings
    # Errors on held-out pairs say more than any assumption about seeds.
    noise_assumed = not noise.measured and (fit is None or fit.held_out is None)
    return Guideline(
        id="guideline-" + hashlib.sha256(f"{digest} {seed} {law} {name}".encode()).hexdigest()[:12],
        name=f"{name} ({len(used)} runs)",
        kind="provisional" if fit is None else "fitted",
        law=law,
        cohort=name,
        basis=basis,
        source="this cohort's own runs",
        num_runs=len(used),
        num_excluded=excluded,
        run_ids=tuple(sorted(used["run_id"])),
        data_hash=digest,
        seed=seed,
        library_versions={
            "numpy": np.__version__, "pandas": pd.__version__, "python": platform.python_version(),
            "scipy": scipy.__version__,
        },
        known=known_range(pairs, singles),
        recipes=cells_module.recipes(designs),
        laws={} if fit is None else state_of(fit.losses),
        noise=noise,
        pairs=pairs,
        controls=singles,
        cannot_identify=cannot_identify(pairs, singles, noise, num_unpaired),
        held_out=None if fit is None else fit.held_out,
        held_out_pairs=() if fit is None else tuple(asdict(pair) for pair in fit.held_out_pairs),
        law_verdicts={} if fit is None else dict(fit.law_verdicts),
        provisional=fit is None or len(pairs) < PAIRS_TO_STAND_ALONE,
        borrowed=() if fit is None else fit.borrowed,
        warnings=(*_warnings(pairs, noise, noise_assumed, excluded, basis, num_by_6nd), *sentences),
    )  # fmt: skip


def known_range(pairs: Iterable[ObservedPair], singles: Iterable[ObservedSingle]) -> KnownRange:
    """The ranges of the pairs; where there is none, of the single-size runs (then no factor is known)."""
    pairs, singles = tuple(pairs), tuple(singles)
    if pairs:
        # A pair's token budget is what scratch would get for the pair's compute.
        ratios = [
            pair.compute_flops * pair.grown_tokens / (pair.compute_flops - pair.base_flops) / pair.target_params
            for pair in pairs
        ]
        return KnownRange(
            target_params=_range(pair.target_params for pair in pairs),
            compute_flops=_range(pair.compute_flops for pair in pairs),
            tokens_per_parameter=_range(ratios),
            growth_factor=_range(pair.growth_factor for pair in pairs),
            hidden_per_layer=_range(
                pair.hidden_size / pair.num_target_layers
                for pair in pairs
                if pair.hidden_size and pair.num_target_layers
            ),
        )
    return KnownRange(
        target_params=_range(single.params for single in singles),
        compute_flops=_range(single.compute_flops for single in singles),
        tokens_per_parameter=_range(single.tokens / single.params for single in singles),
        hidden_per_layer=_range(
            single.hidden_size / single.num_layers for single in singles if single.hidden_size and single.num_layers
        ),
    )


def _range(values: Iterable[float]) -> tuple[float, float] | None:
    found = [float(value) for value in values]
    return (min(found), max(found)) if found else None


def _warnings(
    pairs: tuple[ObservedPair, ...],
    noise: Noise,
    noise_assumed: bool,
    excluded: dict[str, int],
    basis: str,
    num_by_6nd: int,
) -> tuple[str, ...]:
    sentences = []
    if excluded:
        sentences.append(f"Runs seen whose losses were not used: {_counted(excluded)}.")
    if basis == "mid_schedule":
        sentences.append("The table holds mid-schedule losses only; an answer for finished runs may differ.")
    if noise_assumed:
        sentences.append(
            f"No design was repeated with another seed: intervals assume a seed spread of {noise.sd_nats:.3f} nats, "
            "measured by this project at hidden size 64."
        )
    if num_by_6nd:
        sentences.append(
            f"compute_flops of {num_by_6nd} runs is 6 N D, which credits growth with free tokens at small sizes."
        )
    unequal = [pair for pair in pairs if not pair.comparable]
    if unequal:
        sentences.append(
            f"In {len(unequal)} of {len(pairs)} pairs grown and scratch runs neither share a learning rate nor were "
            "both tuned over the same ones: a badly tuned control makes growth look good."
        )
    return tuple(sentences)


def _counted(excluded: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', '-')}" for reason, count in sorted(excluded.items()))
