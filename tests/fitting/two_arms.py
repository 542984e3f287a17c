"""A decision between two arms, and what is lost by it on average where the truth is normal: shared by tests of plans."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from fitting.planning.decisions import Arm, Decision
from fitting.recommendation import Request


def two_arms(theta: np.ndarray) -> Decision:
    """Arm 0 is worth nothing; arm 1 ends ``theta`` nats above it."""
    return Decision(
        request=Request(target_params=1e6, token_budget=1e7),
        arms=(Arm(kind="scratch", params=1e6), Arm(kind="grow", params=1e6)),
        losses=np.stack([np.zeros(len(theta)), theta], axis=1),
        worth_flops=np.ones(len(theta)),
    )


def unit_loss(u: float) -> float:
    """Expected shortfall of a standard normal below -u: phi(u) - u (1 - Phi(u))."""
    return float(norm.pdf(u) - u * norm.sf(u))
