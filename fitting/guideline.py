"""A guideline: one versioned answer machine as a value, with what it was made of.

It holds what was observed (pairs, controls), what was fitted (laws, weights, draws), the ranges inside which that is
known, the runs behind it by id and hash, its held-out scores, and sentences about what it cannot identify. It reads
and writes JSON exactly: every float comes back bit by bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from fitting.drawn_losses import DrawnLosses, losses_of
from fitting.errors import InputError

FORMAT_VERSION = 1

Kind = Literal["published", "provisional", "fitted"]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class KnownRange:
    """The (lowest, highest) of each axis behind a guideline; None where an axis was not recorded."""

    target_params: Range | None = None
    compute_flops: Range | None = None
    tokens_per_parameter: Range | None = None
    growth_factor: Range | None = None
    hidden_per_layer: Range | None = None


@dataclass(frozen=True, kw_only=True)
class ObservedSingle:
    """A cell of single-size runs (scratch target, base alone, any fixed size), seeds averaged."""

    params: float
    num_layers: int | None
    hidden_size: int | None
    tokens: float
    compute_flops: float
    loss_nats: float
    num_seeds: int
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ObservedPair:
    """A grown cell and its scratch control at equal FLOPs, seeds averaged."""

    target_params: float
    num_target_layers: int | None
    hidden_size: int | None
    base_params: float
    num_base_layers: int | None
    growth_factor: float
    growth_timing_tokens: float
    grown_tokens: float
    order: str | None
    compute_flops: float
    base_flops: float
    grown_loss_nats: float
    scratch_loss_nats: float
    delta_nats: float
    num_grown_seeds: int
    num_scratch_seeds: int
    grown_run_ids: tuple[str, ...]
    scratch_run_ids: tuple[str, ...]
    comparable: bool


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation of one run's final loss over seeds, with the degrees of freedom it is known by."""

    sd_nats: float
    degrees_of_freedom: float
    num_repeats: int

    @property
    def measured(self) -> bool:
        return self.num_repeats > 0


@dataclass(frozen=True, kw_only=True)
class Guideline:
    """One version of the answer machine.

    ``laws`` maps a law's name to its state: weight, parameters, draws, scores (plain JSON values that the law's own
    module reads); ``borrowed`` says in sentences which terms come from elsewhere. ``recipes`` holds the settings of
    the best run of each size. ``held_out_pairs`` are the predictions behind ``held_out``, one by one
    (:class:`fitting.validation.nested.HeldOutPair`), ``law_verdicts`` why each growth law has its weight or none.
    ``run_ids`` and ``data_hash`` name exactly what was fitted; ``num_excluded`` counts by status the runs that were seen
    but whose losses were not used.
    """

    id: str
    name: str
    kind: Kind
    law: str
    version: int = 1
    cohort: str | None = None
    basis: Literal["final", "mid_schedule", "published"] = "final"
    source: str = ""
    num_runs: int = 0
    num_excluded: Mapping[str, int] = field(default_factory=dict)
    run_ids: tuple[str, ...] = ()
    data_hash: str = ""
    seed: int = 0
    library_versions: Mapping[str, str] = field(default_factory=dict)
    known: KnownRange = field(default_factory=KnownRange)
    laws: Mapping[str, Any] = field(default_factory=dict)
    noise: Noise | None = None
    pairs: tuple[ObservedPair, ...] = ()
    controls: tuple[ObservedSingle, ...] = ()
    recipes: tuple[Mapping[str, Any], ...] = ()
    held_out: Mapping[str, Any] | None = None
    held_out_pairs: tuple[Mapping[str, Any], ...] = ()
    law_verdicts: Mapping[str, str] = field(default_factory=dict)
    cannot_identify: tuple[str, ...] = ()
    provisional: bool = False
    borrowed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The guideline as one JSON document; :meth:`from_json` gives it back bit by bit."""
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Guideline:
        """Read :meth:`to_json`'s document.

        Raises:
            InputError: it is not JSON, of another format version, or a field is missing or unknown.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("guideline", f"is not JSON ({error})", "give a file written by growthlaw") from None
        if not isinstance(values, dict):
            raise InputError("guideline", "is not a JSON object", "give a file written by growthlaw")
        found = values.pop("format_version", None)
        if found != FORMAT_VERSION:
            raise InputError(
                "format_version", f"is {found!r}, but this version reads {FORMAT_VERSION}",
                "refit the guideline, or read it with the growthlaw that wrote it",
            )  # fmt: skip
        values["known"] = _build(KnownRange, values.get("known", {}), "known")
        if values.get("noise") is not None:
            values["noise"] = _build(Noise, values["noise"], "noise")
        values["pairs"] = tuple(_build(ObservedPair, pair, "pairs") for pair in values.get("pairs", ()))
        values["controls"] = tuple(_build(ObservedSingle, single, "controls") for single in values.get("controls", ()))
        return _build(cls, values, "guideline")

    def recipe_of(self, params: float) -> Mapping[str, Any]:
        """The settings of the best run of this size (within 1%), empty where there is none."""
        return next((one for one in self.recipes if abs(one["target_params"] / params - 1) <= 0.01), {})

    @cached_property
    def losses(self) -> DrawnLosses:
        """The fitted losses; only for guidelines with ``laws``."""
        return losses_of(self.laws)

    @property
    def num_held_out_pairs(self) -> int:
        """Pairs that were predicted before they were seen; scores of an average may stand under "averaged"."""
        scores = self.held_out or {}
        return int(scores.get("averaged", scores).get("num_pairs") or 0)

    def summary(self) -> dict[str, Any]:
        """What an answer quotes of it: id, name, version, law, num_runs, held_out."""
        return {
            "id": self.id, "name": self.name, "version": self.version, "law": self.law, "num_runs": self.num_runs,
            "held_out": None if self.held_out is None else dict(self.held_out),
        }  # fmt: skip


def _build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(f"{where}.{name}", "is not a known field", "refit the guideline with this version")
    required = (
        name for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )  # fmt: skip
    for name in required:
        if name not in values:
            raise InputError(f"{where}.{name}", "is missing", "refit the guideline with this version")
    # JSON knows no tuples; every sequence outside the free-form mappings is one here.
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN: a number that is not finite is unknown."""
    return None if value is None or not math.isfinite(value) else float(value)
