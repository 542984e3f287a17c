"""What is asked: a target, a budget (tokens, FLOPs or GPU-hours), and what may be chosen.

    C = D f_target                                   token budget
    C = 3600 h P u                                   GPU-hours
    cost of a base token = f_base u / u_base         in FLOPs at the target's utilisation

========  ==========================================================  ==============
symbol    meaning                                                     unit
========  ==========================================================  ==============
C         compute budget                                              FLOPs
D         token budget                                                tokens
f         training FLOPs per token (target, base)                     FLOPs
h         GPU-hours                                                   hours
P         peak of one GPU                                             FLOPs / second
u, u_base utilisation training the target, the base                   -
========  ==========================================================  ==============
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fitting.errors import InputError
from fitting.flops import Shape, non_embedding_params
from fitting.layers import BaseOption, Target, base_options
from fitting.recommendation.existing_base import ExistingBase, base_of_existing

BaseCompute = Literal["charged", "sunk"]
Objective = Literal["lowest_loss", "fewest_flops"]

# What planners ask for and no law here can answer yet; refused by name, never ignored.
NOT_YET = {
    "active_params": "mixture-of-experts targets",
    "num_experts": "mixture-of-experts targets",
    "num_epochs": "repeated data",
    "unique_tokens": "repeated data",
    "data_mixture": "a mixture that changes during the run",
    "deadline": "a deadline in wall-clock time",
    "width_factor": "growth in width",
}

# The ways to say how much there is, of which a question names one; the last asks how much it takes.
BUDGETS = ("token_budget", "compute_flops", "gpu_hours", "loss_to_match_nats")
_HARDWARE = ("peak_flops_per_second", "utilisation", "base_utilisation")
# No model is smaller or larger, no run shorter or longer; beyond these a number is a slip of units.
_PARAMS_LIMITS = (1e3, 1e15)
TOKENS_LIMITS = (1e3, 1e18)
_LARGEST_GROWTH_FACTOR = 1000.0
_SHAPE_AND_PARAMS_AGREE = 0.02
_SECONDS_AN_HOUR = 3600.0


def refuse_unknown_wishes(names: Iterable[str]) -> None:
    """Refuse fields that no answer could honour.

    Raises:
        InputError: names the first such field and what it stands for.
    """
    for name in names:
        if name in NOT_YET:
            raise InputError(name, f"asks for {NOT_YET[name]}, which no guideline can honour yet", "leave it out")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One GPU's peak and the shares of it that training the target and the (smaller) base reach."""

    peak_flops_per_second: float
    utilisation: float
    base_utilisation: float

    def __post_init__(self) -> None:
        if not _is_number(self.peak_flops_per_second) or self.peak_flops_per_second <= 0:
            raise InputError(
                "peak_flops_per_second", f"is {self.peak_flops_per_second!r}, but it must be above 0",
                "give one GPU's peak, such as 989e12",
            )  # fmt: skip
        for field in ("utilisation", "base_utilisation"):
            value = getattr(self, field)
            if not _is_number(value) or not 0 < value <= 1:
                raise InputError(field, f"is {value!r}, but it must lie in (0, 1]", "give a share, such as 0.4")

    @property
    def base_cost_factor(self) -> float:
        """FLOPs at the target's utilisation that one FLOP of the base costs."""
        return self.utilisation / self.base_utilisation

    def gpu_hours(self, flops: float) -> float:
        """GPU-hours of ``flops`` at the target's utilisation."""
        return flops / (_SECONDS_AN_HOUR * self.peak_flops_per_second * self.utilisation)

    def flops(self, gpu_hours: float) -> float:
        """FLOPs that ``gpu_hours`` buy at the target's utilisation."""
        return gpu_hours * _SECONDS_AN_HOUR * self.peak_flops_per_second * self.utilisation


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question to :func:`fitting.recommendation.recommend`.

    Args:
        token_budget: tokens a from-scratch run of the target would get; fixes the compute budget C.
        target_params: non-embedding parameters of the target; may be left out where ``target_shape`` is given.
        target_shape: the target's shape; with it FLOPs follow ``fitting.flops``, without it 6 N D.
        num_target_layers: layers of the target where no shape is given (lets the answer name layer lists).
        growth_factors: the factors to consider; default 2, 4, 8.
        base_compute: whether the base's FLOPs count against C. The answer gives both, this picks the one on top.
        existing_base_tokens: tokens that a base which already exists was trained on; growth cannot come earlier, and
            with ``base_compute="sunk"`` only further base tokens are paid for.
        existing_base: that base itself, whose size is then the only one considered; instead of ``existing_base_tokens``.
        objective: "lowest_loss" for the budget, or "fewest_flops" to the loss that scratch reaches with it.
        hardware: utilisations, where base and target differ or answers are wanted in GPU-hours.
        cohort: whose losses are meant; a guideline of another cohort is refused.

    Raises:
        InputError: names the field, the limit and the mend.
    """

    token_budget: float
    target_params: float | None = None
    target_shape: Shape | None = None
    num_target_layers: int | None = None
    growth_factors: tuple[float, ...] | None = None
    base_compute: BaseCompute = "charged"
    cohort: str | None = None
    existing_base_tokens: float | None = None
    existing_base: ExistingBase | None = None
    objective: Objective = "lowest_loss"
    hardware: Hardware | None = None

    @classmethod
    def from_flops(cls, compute_flops: float, **fields: Any) -> Request:
        """A request whose budget is given in FLOPs; ``fields`` are the others of :class:`Request`."""
        if not _is_number(compute_flops) or compute_flops <= 0:
            raise InputError("compute_flops", f"is {compute_flops!r}, but it must be above 0", "give a number of FLOPs")
        # Any valid token budget does to learn the target's FLOPs per token.
        probe = cls(token_budget=TOKENS_LIMITS[1], **fields)
        tokens = compute_flops / probe.target.flops_per_token
        low, high = TOKENS_LIMITS
        if not low <= tokens <= high:
            raise InputError(
                "compute_flops", f"is {compute_flops:g}, which trains this target on {tokens:.3g} tokens; between "
                f"{low:g} and {high:g} are possible", "give a budget in plain FLOPs",
            )  # fmt: skip
        return cls(token_budget=tokens, **fields)

    @classmethod
    def from_gpu_hours(cls, gpu_hours: float, *, hardware: Hardware, **fields: Any) -> Request:
        """A request whose budget is given in GPU-hours of ``hardware``."""
        if not _is_number(gpu_hours) or gpu_hours <= 0:
            raise InputError("gpu_hours", f"is {gpu_hours!r}, but it must be above 0", "give a number of GPU-hours")
        return cls.from_flops(hardware.flops(gpu_hours), hardware=hardware, **fields)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Request:
        """A request from plain fields, as HTTP and the command line have them.

        Beside those of :class:`Request`: the budget as one of ``token_budget``, ``compute_flops``, ``gpu_hours``, and the
        hardware as ``peak_flops_per_second``, ``utilisation`` and ``base_utilisation`` (``utilisation`` where left out).
        A field that is None counts as left out; the compute of an ``existing_base`` is sunk unless ``base_compute`` says
        otherwise.
        """
        given = given_fields(fields)
        budgets = [name for name in BUDGETS if name in given]
        if len(budgets) != 1:
            found = f"stands beside {budgets[1]}" if budgets else "is missing"
            raise InputError(budgets[0] if budgets else BUDGETS[0], found, f"give exactly one of {', '.join(BUDGETS)}")
        if "gpu_hours" in given:
            if "hardware" not in given:
                raise InputError("peak_flops_per_second", "is missing", "GPU-hours need it, and utilisation")
            return cls.from_gpu_hours(given.pop("gpu_hours"), **given)
        if "compute_flops" in given:
            return cls.from_flops(given.pop("compute_flops"), **given)
        return cls(**given)

    def __post_init__(self) -> None:
        _check_count("token_budget", self.token_budget, TOKENS_LIMITS, "tokens")
        if self.target_params is None and self.target_shape is None:
            raise InputError("target_params", "is missing", "give target_params or the target's shape")
        if self.target_params is not None:
            _check_count("target_params", self.target_params, _PARAMS_LIMITS, "parameters")
        if self.target_shape is not None:
            self._check_shape(self.target_shape)
        if self.num_target_layers is not None and (
            not isinstance(self.num_target_layers, int)
            or isinstance(self.num_target_layers, bool)
            or not 1 <= self.num_target_layers <= 10_000
        ):
            raise InputError(
                "num_target_layers", f"is {self.num_target_layers!r}, but it must be a whole number from 1 to 10000",
                "give the target's layers, or leave it out",
            )  # fmt: skip
        self._check_growth_factors()
        if self.base_compute not in ("charged", "sunk"):
            raise InputError(
                "base_compute", f"is {self.base_compute!r}, but it must be 'charged' or 'sunk'", "use one of them"
            )
        if self.objective not in ("lowest_loss", "fewest_flops"):
            raise InputError(
                "objective", f"is {self.objective!r}, but it must be 'lowest_loss' or 'fewest_flops'", "use one of them"
            )
        if self.existing_base_tokens is not None:
            _check_count("existing_base_tokens", self.existing_base_tokens, TOKENS_LIMITS, "tokens")
        if self.existing_base is not None:
            self._check_existing_base(self.existing_base)

    def _check_existing_base(self, existing: ExistingBase) -> None:
        _check_count("existing_base.tokens", existing.tokens, TOKENS_LIMITS, "tokens")
        if self.existing_base_tokens is not None:
            raise InputError(
                "existing_base_tokens", "stands beside existing_base, which has its own tokens", "leave it out"
            )
        if self.growth_factors is not None:
            raise InputError(
                "growth_factors", "stand beside existing_base, whose size is what growth starts from", "leave them out"
            )
        if existing.params is not None:
            _check_count("existing_base.params", existing.params, _PARAMS_LIMITS, "parameters")
        base = base_of_existing(self.target, existing)
        if base.growth_factor > _LARGEST_GROWTH_FACTOR:
            raise InputError(
                "existing_base", f"is {base.growth_factor:.4g} times smaller than the target, and at most "
                f"{_LARGEST_GROWTH_FACTOR:g} is possible", "give a larger base",
            )  # fmt: skip

    def _check_shape(self, shape: Shape) -> None:
        from_shape = non_embedding_params(shape)
        given = self.target_params
        if given is not None and abs(given / from_shape - 1) > _SHAPE_AND_PARAMS_AGREE:
            raise InputError(
                "target_params", f"is {given:g}, but the target's shape has {from_shape:,} non-embedding parameters",
                "leave target_params out, or mend the shape",
            )  # fmt: skip
        if self.num_target_layers is not None and self.num_target_layers != shape.num_layers:
            raise InputError(
                "num_target_layers",
                f"is {self.num_target_layers}, but the target's shape has {shape.num_layers} layers",
                "leave num_target_layers out, or mend the shape",
            )  # fmt: skip

    def _check_growth_factors(self) -> None:
        if self.growth_factors is None:
            return
        if not self.growth_factors:
            raise InputError("growth_factors", "is empty", "name at least one factor above 1, or leave it out")
        for factor in self.growth_factors:
            if not _is_number(factor) or not 1 < factor <= _LARGEST_GROWTH_FACTOR:
                raise InputError(
                    "growth_factors",
                    f"holds {factor!r}, but a factor must be above 1 and at most {_LARGEST_GROWTH_FACTOR:g}",
                    "use factors like 2, 4, 8",
                )  # fmt: skip
        layers = self.target.num_layers
        if layers is not None and all(max(1, round(layers / factor)) >= layers for factor in self.growth_factors):
            raise InputError(
                "growth_factors", f"give no base shallower than the target's {layers} layers", "use larger factors"
            )

    @cached_property
    def target(self) -> Target:
        shape = self.target_shape
        if shape is not None:
            return Target(params=float(non_embedding_params(shape)), num_layers=shape.num_layers, shape=shape)
        assert self.target_params is not None
        return Target(params=float(self.target_params), num_layers=self.num_target_layers)

    @cached_property
    def bases(self) -> tuple[BaseOption, ...]:
        """The bases to consider, by rising growth factor: the one that exists, or those of the factors asked for."""
        if self.existing_base is not None:
            return (base_of_existing(self.target, self.existing_base),)
        return base_options(self.target, self.growth_factors)

    @property
    def base_tokens(self) -> float | None:
        """Tokens that an existing base has seen; None where there is none."""
        return self.existing_base_tokens if self.existing_base is None else self.existing_base.tokens

    @property
    def compute_flops(self) -> float:
        """C, the FLOPs of training the target from scratch on the token budget."""
        return self.token_budget * self.target.flops_per_token


def given_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given, checked and with the hardware as one: what :class:`Request` takes but for the budget."""
    given = {name: value for name, value in fields.items() if value is not None}
    refuse_unknown_wishes(given)
    if "existing_base" in given:
        given.setdefault("base_compute", "sunk")
    if any(name in given for name in _HARDWARE):
        for name in _HARDWARE[:2]:
            if name not in given:
                raise InputError(name, "is missing", "hardware needs peak_flops_per_second and utilisation")
        peak, utilisation = given.pop("peak_flops_per_second"), given.pop("utilisation")
        given["hardware"] = Hardware(
            peak_flops_per_second=peak,
            utilisation=utilisation,
            base_utilisation=given.pop("base_utilisation", utilisation),
        )
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(field: str, value: object, limits: tuple[float, float], unit: str) -> None:
    low, high = limits
    if not _is_number(value):
        raise InputError(
            field, f"is {value!r}, but it must be a finite number of {unit}", f"give a plain count of {unit}"
        )
    if not low <= value <= high:  # type: ignore[operator]
        raise InputError(
            field, f"is {value!r}, but it must lie between {low:g} and {high:g} {unit}",
            f"give a plain count of {unit}, not millions or billions",
        )  # fmt: skip
