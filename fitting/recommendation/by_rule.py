"""The answer of a rule: its (d, g) for the plan, under both accountings, with the published figures as the prior."""

from __future__ import annotations

from collections.abc import Sequence

from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.layers import BaseOption
from fitting.recommendation.answer import (
    Accounting,
    Alternative,
    Expected,
    Recommendation,
    base_model,
    flops_of,
    target_model,
)
from fitting.recommendation.outcomes import outcomes_without_losses
from fitting.recommendation.recipe import recipe
from fitting.recommendation.request import Request
from fitting.recommendation.support import pilot, support
from fitting.rules import RULES, Plan, RuleDecision

# Speedups at equal loss printed in arXiv 2405.15319 for 410M to 7B targets (d = 10B, g = 4, losses in the middle of one
# cosine schedule): 0.531, 0.310, 0.491, 0.486, 0.545, 0.408, 0.553, 0.538, 0.546; their median and their range.
PUBLISHED_SPEEDUP = 0.531
PUBLISHED_SPEEDUP_RANGE = (0.310, 0.553)


def answer_by_rule(request: Request, guideline: Guideline, first_warnings: Sequence[str] = ()) -> Recommendation:
    """What the published rule of ``guideline`` says; ``first_warnings`` come before its own."""
    rule = RULES[guideline.law]
    target = request.target
    bases = request.bases

    if request.objective != "lowest_loss":
        raise InputError(
            "objective", f"is {request.objective!r}, but {guideline.name} predicts no losses to compare",
            "ask a fitted guideline, or use 'lowest_loss'",
        )  # fmt: skip

    def plan(options: tuple[BaseOption, ...], base_is_sunk: bool) -> Plan:
        return Plan(
            target=target, token_budget=request.token_budget, bases=options, base_is_sunk=base_is_sunk,
            existing_base_tokens=request.base_tokens,
            base_cost_factor=1.0 if request.hardware is None else request.hardware.base_cost_factor,
        )  # fmt: skip

    decisions = {"charged": rule.decide(plan(bases, False)), "sunk": rule.decide(plan(bases, True))}
    chosen = decisions[request.base_compute]
    grow = chosen.decision == "grow"
    base = chosen.base if grow else None
    d = chosen.growth_timing_tokens if grow else None
    base_is_sunk = request.base_compute == "sunk"
    grown_tokens = plan(bases, base_is_sunk).grown_tokens(base, d) if base is not None and d is not None else None
    # An infeasible rule asked for a factor too; how far that lies from its runs belongs to the answer.
    graded = support(request, guideline, chosen.growth_factor)
    warnings = [*first_warnings]
    if not grow:
        warnings.append(chosen.reason)
    if chosen.decision == "infeasible" and chosen.needed_token_budget is None:
        warnings.append("No token budget up to 1e24 tokens makes this rule feasible for this target.")
    warnings += _warnings(request, guideline, graded.grade, chosen)
    by_accounting = {name: _accounting(decision, plan(bases, name == "sunk")) for name, decision in decisions.items()}
    return Recommendation(
        guideline=guideline.summary(),
        decision=chosen.decision,
        growth_factor=chosen.growth_factor if grow else None,
        growth_timing_tokens=d,
        growth_timing_range=chosen.growth_timing_range if grow else None,
        order=chosen.order if grow else None,
        base_model=None if base is None else base_model(target, base),
        target_model=target_model(target),
        grown_tokens=grown_tokens,
        flops=flops_of(plan(bases, base_is_sunk).budget, base, d),
        expected=_expected(request, guideline, graded.grade, chosen),
        best_fixed_size=None,
        target_oversized=None,
        by_accounting=by_accounting,
        support=graded,
        alternatives=tuple(
            _alternative(base, rule.decide(plan((base,), base_is_sunk)), plan((base,), base_is_sunk)) for base in bases
        ),
        warnings=tuple(warnings),
        recipe=recipe(guideline, target, base, d, grown_tokens) if base and d and grown_tokens else {},
        arms=outcomes_without_losses(
            request,
            {name: plan(bases, name == "sunk").budget for name in decisions},
            by_accounting,
            f"{guideline.name} predicts no losses",
            {name: one.base.flops_per_token for name, one in decisions.items() if one.base is not None},
        ),
        pilot=pilot(request) if graded.grade == "unsupported" else None,
    )  # fmt: skip


def _accounting(decision: RuleDecision, plan: Plan) -> Accounting:
    if decision.decision != "grow" or decision.base is None or decision.growth_timing_tokens is None:
        return Accounting(decision=decision.decision, reason=decision.reason)
    reason = decision.reason
    if plan.base_is_sunk and plan.existing_base_tokens is None:
        reason += " The base's compute is not counted: this holds where a base trained for d tokens exists anyway."
    elif plan.base_is_sunk:
        reason += " Of the base's compute only what comes after the tokens that it has is counted."
    return Accounting(
        decision="grow", reason=reason, growth_factor=decision.growth_factor,
        growth_timing_tokens=decision.growth_timing_tokens,
        grown_tokens=plan.grown_tokens(decision.base, decision.growth_timing_tokens),
    )  # fmt: skip


def _alternative(base: BaseOption, decision: RuleDecision, plan: Plan) -> Alternative:
    d = decision.growth_timing_tokens
    return Alternative(
        growth_factor=base.growth_factor, num_base_layers=base.num_layers, base_params=base.params, order=base.order,
        connection_rate=base.connection_rate, growth_timing_tokens=d, growth_timing_range=decision.growth_timing_range,
        grown_tokens=plan.grown_tokens(base, d) if d is not None and decision.decision == "grow" else None,
        decision=decision.decision,
    )  # fmt: skip


def _expected(request: Request, guideline: Guideline, grade: str, decision: RuleDecision) -> Expected:
    if guideline.law != "gstack" or grade == "unsupported" or decision.decision != "grow":
        return Expected(basis=f"none: {guideline.name} predicts no loss here")
    return Expected(
        basis="published: speedups printed for 410M to 7B targets, mid-schedule losses, no error bars",
        speedup=PUBLISHED_SPEEDUP,
        speedup_interval=PUBLISHED_SPEEDUP_RANGE,
        saved_target_tokens=PUBLISHED_SPEEDUP * request.token_budget,
    )


def _warnings(request: Request, guideline: Guideline, grade: str, decision: RuleDecision) -> list[str]:
    sentences = []
    if request.target.flops_convention == "6nd":
        sentences.append("FLOPs are 6 N D because only the target's size is known; give its shape for an exact count.")
    if grade == "unsupported":
        known = guideline.known
        if known.target_params is not None and known.compute_flops is not None:
            sentences.append(
                f"{guideline.name} was fitted on {known.target_params[0]:g} to {known.target_params[1]:g} parameters "
                f"and {known.compute_flops[0]:.2g} to {known.compute_flops[1]:.2g} FLOPs; beyond, its timing is a "
                "prior without a tested range, and no gain or chance is given."
            )
        sentences.append(pilot(request).sentence)
    if decision.growth_timing_range is not None and decision.decision == "grow":
        sentences.append(
            "growth_timing_range is what rounding the published constants moves; the fit came without error bars."
        )
    if decision.decision == "grow" and decision.base is not None and not decision.base.exact:
        sentences.append(
            f"The base's {decision.base.num_layers} layers do not divide the target's; order lists the layers "
            f"(connection rate {decision.base.connection_rate:.0%})."
        )
    sentences += [f"Not known of this rule: {sentence}." for sentence in guideline.cannot_identify]
    return sentences
