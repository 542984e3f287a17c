"""The losses of a fitted guideline, read back from its JSON: draws of scratch curves, each with its growth terms.

    laws = {"groups": [{"scratch", "scratch_draws", "offsets", "growth", "growth_draws"}, ...],
            "run_noise_nats", "delta_noise_nats"}

========  ===========================================================================  =========
symbol    meaning                                                                      shape
========  ===========================================================================  =========
K         draws over all groups; a group's share of them is the weight of its laws     -
R         rows asked about                                                             -
========  ===========================================================================  =========
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitting.conventions import SAME_SIZE
from fitting.growth_laws import GROWTH_LAWS, GrowthLaw, GrowthPoints, Prepared, ScratchCurve
from fitting.growth_laws.equivalent_progress import EquivalentProgress
from fitting.growth_laws.scratch_curve import TargetOffset
from fitting.laws import scratch_law
from fitting.laws.base import Array

# Offsets bend the curve by a few per cent at most, so its inverse settles in a few rounds.
_INVERSE_ROUNDS = 4
_WIDEST = EquivalentProgress("equivalent_progress_widest", ("ln_kappa", "c", "c_slope", "ln_p"))


@dataclass(frozen=True, kw_only=True)
class Group:
    """One scratch curve with its draws (k, P), one growth law that may choose timings, and its draws (k, Q)."""

    curve: ScratchCurve
    growth: GrowthLaw
    growth_draws: Array

    def __len__(self) -> int:
        return len(self.curve.params)

    def grown(self, points: GrowthPoints) -> Array:
        """(k, R) of points of one target."""
        # As Prepared.of, without the scratch losses that only delta needs and the bends of other sizes.
        curve = self._bent_at(float(points.target_params[0]))
        base_loss = curve.smooth_loss(points.base_params, points.timing_tokens)
        reached = curve.smooth_tokens_for_loss(points.target_params[:1], base_loss)
        cap = 1e3 * (points.timing_tokens + points.grown_tokens + points.scratch_tokens)
        prepared = Prepared(
            points=points,
            scratch=curve,
            base_loss=base_loss,
            equivalent_tokens=np.minimum(reached, cap),
            scratch_loss=base_loss,
        )
        return self.growth.grown_loss(self.growth_draws, prepared)

    def _bent_at(self, params: float) -> ScratchCurve:
        offsets = tuple(offset for offset in self.curve.offsets if abs(params / offset.params - 1) < SAME_SIZE)
        return ScratchCurve(law=self.curve.law, params=self.curve.params, offsets=offsets)

    def scratch_tokens(self, params: float, losses: Array) -> Array:
        """Tokens (k, R) at which the curve of ``params`` reaches ``losses`` (k, R)."""
        smooth = self.curve.smooth_tokens_for_loss
        tokens = smooth(params, losses)
        for offset in self._bent_at(params).offsets:
            for _ in range(_INVERSE_ROUNDS):
                known = np.where(np.isfinite(tokens), np.maximum(tokens, 1e-3), 1e30)
                tokens = smooth(params, losses * np.exp(-offset.at(known)[0]))
        return tokens

    def thinned(self, every: int) -> Group:
        which = np.arange(0, len(self), every)
        return Group(curve=self.curve.take(which), growth=self.growth, growth_draws=self.growth_draws[which])


def _widened(group: Group) -> Group:
    """The same group in terms of the widest law of its family, so that groups of one family can be evaluated at once.

    Terms that a narrower member does not fit are 0 there: kappa = 1, c = c' = 0, p = 1.
    """
    if not isinstance(group.growth, EquivalentProgress):
        return group
    columns = [
        group.growth_draws[:, group.growth.parameter_names.index(name)]
        if name in group.growth.parameter_names
        else np.zeros(len(group))
        for name in _WIDEST.parameter_names
    ]
    return replace(group, growth=_WIDEST, growth_draws=np.stack(columns, axis=1))


def _joined(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Neighbours of one scratch law, bent at the same knots, and one growth law become one group."""
    joined: list[Group] = []
    for group in map(_widened, groups):
        before = joined[-1] if joined else None
        if before is None or before.growth is not group.growth or not _same_form(before.curve, group.curve):
            joined.append(group)
            continue
        offsets = tuple(
            TargetOffset(params=a.params, knots=a.knots, values=np.concatenate([a.values, b.values]))
            for a, b in zip(before.curve.offsets, group.curve.offsets, strict=True)
        )
        curve = ScratchCurve(
            law=group.curve.law, params=np.concatenate([before.curve.params, group.curve.params]), offsets=offsets
        )
        draws = np.concatenate([before.growth_draws, group.growth_draws])
        joined[-1] = Group(curve=curve, growth=group.growth, growth_draws=draws)
    return tuple(joined)


def _same_form(a: ScratchCurve, b: ScratchCurve) -> bool:
    return (
        a.law is b.law
        and len(a.offsets) == len(b.offsets)
        and all(
            one.params == other.params and np.array_equal(one.knots, other.knots)
            for one, other in zip(a.offsets, b.offsets, strict=True)
        )
    )


@dataclass(frozen=True, kw_only=True)
class DrawnLosses:
    """Draws of losses of all groups, one after the other; see ``fitting.recommendation.losses.Losses``."""

    groups: Sequence[Group]
    run_noise_nats: float
    delta_noise_nats: float

    @cached_property
    def _parts(self) -> tuple[Group, ...]:
        """The groups in their order, joined where they can be evaluated at once."""
        return _joined(self.groups)

    @property
    def num_draws(self) -> int:
        return sum(len(group) for group in self.groups)

    @property
    def law_of_draw(self) -> NDArray[np.int64]:
        return np.concatenate([np.full(len(group), i) for i, group in enumerate(self.groups)])

    def thinned(self, num_draws: int) -> DrawnLosses:
        every = max(1, self.num_draws // num_draws)
        groups = tuple(group.thinned(every) for group in self.groups)
        return replace(self, groups=groups)

    def scratch(self, params: Array, tokens: Array) -> Array:
        return np.concatenate([group.curve.loss(params, tokens) for group in self._parts])

    def grown(self, target_params: float, base_params: Array, timing_tokens: Array, grown_tokens: Array) -> Array:
        size = np.full(len(base_params), target_params)
        points = GrowthPoints(
            target_params=size,
            base_params=base_params,
            growth_factor=size / base_params,
            timing_tokens=timing_tokens,
            grown_tokens=grown_tokens,
            # Only read for delta, which is taken against the scratch arm here.
            scratch_tokens=grown_tokens,
        )
        return np.concatenate([group.grown(points) for group in self._parts])

    def scratch_tokens(self, params: float, loss_nats: Array) -> Array:
        ends = np.cumsum([len(group) for group in self._parts])
        parts = np.split(loss_nats, ends[:-1])
        return np.concatenate(
            [group.scratch_tokens(params, part) for group, part in zip(self._parts, parts, strict=True)]
        )


def state_of(losses: DrawnLosses) -> dict[str, Any]:
    """Plain JSON values that :func:`losses_of` reads back bit by bit."""
    return {
        "groups": [
            {
                "scratch": group.curve.law.name,
                "scratch_draws": group.curve.params.tolist(),
                "offsets": [
                    {"params": offset.params, "knots": offset.knots.tolist(), "values": offset.values.tolist()}
                    for offset in group.curve.offsets
                ],
                "growth": group.growth.name,
                "growth_draws": group.growth_draws.tolist(),
            }
            for group in losses.groups
        ],
        "run_noise_nats": losses.run_noise_nats,
        "delta_noise_nats": losses.delta_noise_nats,
    }


def losses_of(state: Mapping[str, Any]) -> DrawnLosses:
    """The losses of a guideline's ``laws``."""
    groups = []
    for group in state["groups"]:
        offsets = tuple(
            TargetOffset(params=offset["params"], knots=np.array(offset["knots"]), values=np.array(offset["values"]))
            for offset in group["offsets"]
        )
        curve = ScratchCurve(
            law=scratch_law(group["scratch"]),
            params=np.array(group["scratch_draws"], dtype=np.float64),
            offsets=offsets,
        )
        growth = GROWTH_LAWS[group["growth"]]
        # A law without parameters has draws of no columns.
        terms = np.array(group["growth_draws"], dtype=np.float64).reshape(len(curve.params), growth.num_parameters)
        groups.append(Group(curve=curve, growth=growth, growth_draws=terms))
    return DrawnLosses(
        groups=tuple(groups),
        run_noise_nats=float(state["run_noise_nats"]),
        delta_noise_nats=float(state["delta_noise_nats"]),
    )
