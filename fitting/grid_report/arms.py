"""The runs of a grid as targets, budgets and arms: what was compared with what, seeds side by side.

    budget tokens B = C / f_target          one budget: compute within 1%

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
C         compute of a run, base included                                              FLOPs
f_target  training FLOPs per token of the target                                       FLOPs
B         tokens a scratch run of the target gets for C                                tokens
arm       runs that differ in seed and budget only; decay legs of a trunk are one arm  -
========  ===========================================================================  ======

The reference arms of a target share the setting (rates, schedule, optimizer state, order, operator) that most of its grown
runs have; every other setting is a contrast to them. A cohort named ``MAIN-SUFFIX`` holds runs of that variant (such as
``-rewind`` or ``-cosine``) of the main cohort's recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fitting.cells import equal_compute, usable, with_compute
from fitting.conventions import SAME_SIZE
from fitting.errors import InputError
from fitting.table import is_grown, plain, read_runs

Kind = Literal["scratch", "fixed", "grown"]
EXTRA_COLUMNS = ("step", "family", "cell", "budget_tokens")
# What makes the setting of an arm besides its size, factor and timing.
SETTING_COLUMNS = ("variant", "peak_lr", "base_peak_lr", "schedule", "optimizer_state_policy", "operator", "order")
# Of these a run that was not grown has no say.
_GROWTH_SETTINGS = ("base_peak_lr", "optimizer_state_policy", "operator", "order")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One final loss: its seed's label, its trunk family, its loss in nats."""

    run_id: str
    seed: str
    trunk: str
    loss_nats: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs of one design; ``runs`` holds them by the place of their budget in the target's ``budget_tokens``.

    ``params`` is the size that is trained last (a smaller depth's own for ``fixed``); ``setting`` holds SETTING_COLUMNS.
    """

    kind: Kind
    params: float
    num_layers: int | None
    growth_factor: float
    timing_tokens: float
    setting: Mapping[str, Any]
    runs: Mapping[int, tuple[Run, ...]]

    def loss(self, budget: int) -> float:
        """Mean over the seeds, in nats; nan where the budget was not run."""
        runs = self.runs.get(budget, ())
        return float(np.mean([run.loss_nats for run in runs])) if runs else float("nan")

    def num_seeds(self, budget: int) -> int:
        return len(self.runs.get(budget, ()))

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(sorted({run.seed for runs in self.runs.values() for run in runs}))

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(sorted(run.run_id for runs in self.runs.values() for run in runs))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One size that was grown into, with its budgets (rising) and arms; ``reference`` is the setting of most grown runs."""

    params: float
    label: str
    flops_per_token: float
    shape: Mapping[str, int] | None
    budget_tokens: tuple[float, ...]
    arms: tuple[Arm, ...]
    reference: Mapping[str, Any]

    def of_kind(self, kind: Kind, *, reference: bool = True) -> tuple[Arm, ...]:
        """Arms of a kind; with ``reference`` those of the reference setting alone."""
        return tuple(
            arm for arm in self.arms if arm.kind == kind and (not reference or is_reference(arm, self.reference))
        )

    @property
    def scratch(self) -> Arm | None:
        """The target from scratch in the reference setting."""
        return next(iter(self.of_kind("scratch")), None)

    def tokens_per_parameter(self, budget: int) -> float:
        return self.budget_tokens[budget] / self.params

    def compute_flops(self, budget: int) -> float:
        return self.budget_tokens[budget] * self.flops_per_token


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All targets, and the table behind them; ``main`` are the rows of the reference settings in the main cohort."""

    cohort: str
    targets: tuple[Target, ...]
    table: pd.DataFrame
    main: pd.DataFrame
    excluded: Mapping[str, int]


def is_reference(arm: Arm, reference: Mapping[str, Any]) -> bool:
    """Whether the arm has the reference setting, as far as the setting concerns its kind."""
    return all(
        arm.setting[column] == reference[column]
        for column in SETTING_COLUMNS
        if arm.kind == "grown" or column not in _GROWTH_SETTINGS
    )


def read_grid(source: Path | pd.DataFrame) -> Grid:
    """The grid from a folder with ``headers.csv``, or from such a table.

    Raises:
        InputError: the table is bad, or has no final loss of a finished run.
    """
    if isinstance(source, pd.DataFrame):
        raw = source.reset_index(drop=True)
    else:
        path = source / "headers.csv"
        if not path.is_file():
            raise InputError("RUNS_DIR", f"{source} has no headers.csv", "give a folder such as data/runs")
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = read_runs(raw)
    for column in EXTRA_COLUMNS:
        table[column] = [plain(value) or None for value in raw[column]] if column in raw.columns else None
    used, basis, excluded = usable(table)
    if used.empty or basis != "final":
        raise InputError(
            "headers.csv", "holds no finished run with a final loss", "collect the grid once a run has finished"
        )
    used, _ = with_compute(used)
    names = Counter(used["cohort"])
    # The main cohort's name starts the names of its variants; of unrelated ones the largest is reported.
    cohort = min(names, key=lambda name: (-sum(n for other, n in names.items() if _is_variant(other, name)), len(name)))
    strangers = {name: count for name, count in names.items() if not _is_variant(name, cohort)}
    if strangers:
        excluded = {**excluded, **{f"cohort {name}": count for name, count in strangers.items()}}
        used = used[~used["cohort"].isin(strangers)]
    used = used.reset_index(drop=True)
    used["variant"] = [str(name)[len(cohort) + 1 :] for name in used["cohort"]]
    targets = tuple(_target(used, size) for size in _target_sizes(used))
    return Grid(cohort=cohort, targets=targets, table=used, main=_main_rows(used, targets), excluded=excluded)


def _is_variant(name: str, main: str) -> bool:
    return name == main or name.startswith(f"{main}-")


def _target_sizes(used: pd.DataFrame) -> list[float]:
    """Sizes that were grown into; without any the deepest of each width."""
    grown = used.loc[is_grown(used), "target_params"]
    if grown.empty:
        deepest = used.groupby(used["hidden_size"].fillna(0))["target_params"].max()
        grown = deepest
    sizes: list[float] = []
    for size in sorted(set(grown)):
        if not sizes or size / sizes[-1] - 1 >= SAME_SIZE:
            sizes.append(float(size))
    return sizes


def _target(used: pd.DataFrame, size: float) -> Target:
    own = used[np.abs(used["target_params"] / size - 1) < SAME_SIZE]
    first = own.iloc[0]
    per_token = float(first["target_flops_per_token"])
    budgets = _budgets(own["compute_flops"] / per_token)
    smaller = used[(used["growth_factor"] == 1) & (used["target_params"] < size * (1 - SAME_SIZE))]
    near = [any(equal_compute(flops, budget * per_token) for budget in budgets) for flops in smaller["compute_flops"]]
    rows = pd.concat([own, smaller[near]])
    arms = _arms(rows, size, per_token, budgets)
    grown = [arm for arm in arms if arm.kind == "grown"] or [arm for arm in arms if arm.kind == "scratch"]
    count: Counter[tuple[Any, ...]] = Counter()
    for arm in grown:
        count[tuple(arm.setting[column] for column in SETTING_COLUMNS)] += len(arm.run_ids)
    most = min(count, key=lambda setting: (-count[setting], repr(setting)))
    shape = _shape(first)
    named = f"{shape['hidden_size']} x {shape['num_target_layers']}" if shape else f"N = {size:.4g}"
    return Target(
        params=size,
        label=named,
        flops_per_token=per_token,
        shape=shape,
        budget_tokens=budgets,
        arms=arms,
        reference=dict(zip(SETTING_COLUMNS, most, strict=True)),
    )


def _shape(row: pd.Series[Any]) -> dict[str, int] | None:
    columns = (
        "num_target_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "context_length",
    )  # fmt: skip
    values = {column: row[column] for column in columns}
    return None if any(np.isnan(value) for value in values.values()) else {k: int(v) for k, v in values.items()}


def _budgets(tokens: pd.Series[float]) -> tuple[float, ...]:
    """Scratch tokens of each budget: runs within 1% of the group's first are one budget, named by its median."""
    groups: list[list[float]] = []
    for value in sorted(tokens):
        if groups and equal_compute(value, groups[-1][0]):
            groups[-1].append(float(value))
        else:
            groups.append([float(value)])
    return tuple(float(np.median(group)) for group in groups)


def _arms(rows: pd.DataFrame, size: float, per_token: float, budgets: tuple[float, ...]) -> tuple[Arm, ...]:
    found: dict[tuple[Any, ...], dict[int, dict[str, Run]]] = {}
    for row in rows.to_dict("records"):
        kind: Kind = "grown" if row["growth_factor"] > 1 else "scratch"
        if row["target_params"] < size * (1 - SAME_SIZE):
            kind = "fixed"
        if kind == "grown" and row["growth_timing_tokens"] == 0:
            continue
        setting = tuple(
            plain(row[column]) if kind == "grown" or column not in _GROWTH_SETTINGS else None
            for column in SETTING_COLUMNS
        )
        key = (kind, row["target_params"] if kind == "fixed" else size, plain(row["num_target_layers"]),
               row["growth_factor"], row["growth_timing_tokens"], setting)  # fmt: skip
        tokens = row["compute_flops"] / per_token
        budget = int(np.argmin(np.abs(np.log(np.array(budgets) / tokens))))
        run = Run(
            run_id=row["run_id"],
            seed=_seed(row),
            trunk=str(row["trunk_id"] or row["run_id"]),
            loss_nats=float(row["final_loss"]),
        )
        # A seed that stands twice in a cell is the same run again; the first in the table counts.
        found.setdefault(key, {}).setdefault(budget, {}).setdefault(run.seed, run)
    return tuple(
        Arm(
            kind=kind, params=float(params), num_layers=None if layers is None else int(layers), growth_factor=factor,
            timing_tokens=timing, setting=dict(zip(SETTING_COLUMNS, setting, strict=True)),
            runs={place: tuple(runs[seed] for seed in sorted(runs)) for place, runs in sorted(cells.items())},
        )
        for (kind, params, layers, factor, timing, setting), cells in sorted(found.items(), key=lambda item: repr(item[0]))
    )  # fmt: skip


def _seed(row: Mapping[str, Any]) -> str:
    seeds = (plain(row["init_seed"]), plain(row["data_seed"]))
    return f"{seeds[0]}/{seeds[1]}" if any(seed is not None for seed in seeds) else str(row["run_id"])


def _main_rows(used: pd.DataFrame, targets: tuple[Target, ...]) -> pd.DataFrame:
    """Rows of the main cohort in their target's reference setting; of smaller sizes those of the same width's rate."""
    kept: set[str] = set()
    for target in targets:
        for kind in ("scratch", "fixed", "grown"):
            for arm in target.of_kind(kind):
                kept.update(arm.run_ids)
    return used[used["run_id"].isin(kept) & (used["variant"] == "")].reset_index(drop=True)
