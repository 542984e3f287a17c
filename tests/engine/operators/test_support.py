"""Every family with every operator in both directions, really grown; what was seen is data/operators/support.md.

Write the table anew:  GROWTHLAW_WRITE_TABLES=1 pytest tests/engine/operators/test_support.py
"""

import itertools
import os
from pathlib import Path

import pytest
import torch
from tiny_models import TINY_FAMILIES, random_model, tiny_config
from transformers import PreTrainedModel

from app.engine.growth import grow_model
from app.engine.operators.base import Growth
from app.engine.operators.learn import learn
from app.engine.operators.support import SUPPORT, check_supported
from fitting.errors import InputError

TABLE = Path(__file__).parents[3] / "data/operators/support.md"
COLUMNS: dict[str, Growth] = {
    "depth direct": Growth(layers=(0, 1) * 2),
    "depth direct, noise": Growth(layers=(0, 1) * 2, noise=0.2),
    "depth zero": Growth(operator="zero", layers=(0, 1) * 2),
    "depth random, m = 0": Growth(operator="random", layers=(0, 1) * 2, mask=0.0),
    "depth learn": Growth(operator="learn", layers=(0, 1) * 2),
    "width direct": Growth(width_factor=2),
    "width direct, noise": Growth(width_factor=2, noise=0.2),
    "width zero": Growth(operator="zero", width_factor=2),
    "width random, m = 0": Growth(operator="random", width_factor=2, mask=0.0),
    "width learn": Growth(operator="learn", width_factor=2),
}
LEGEND = """\
# What grows

Each cell is what was seen when a tiny random model of the family was grown twofold in float32:
`exact`: the same logits bit for bit; `rounding`: the same to 1e-5 of the largest logit; `new`: another function, as meant;
`-`: refused by name. Written by `tests/engine/operators/test_support.py`, which fails where it sees something else.

"""


def grow(base: PreTrainedModel, growth: Growth, tokens: torch.Tensor) -> PreTrainedModel:
    if growth.operator == "learn":
        return learn(base, growth, itertools.repeat(tokens), 2)
    return grow_model(base, growth)


def observe(base: PreTrainedModel, growth: Growth) -> str:
    """Grow and look at the logits, or at the refusal."""
    tokens = torch.randint(0, 40, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base(input_ids=tokens, use_cache=False).logits
    try:
        grown = grow(base, growth, tokens)
    except InputError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert refusal.field == "operator"
        assert f"{growth.operator!r} in {growth.direction} is not defined for {base.config.model_type!r}" in str(
            refusal
        )
        return "-"
    with torch.no_grad():
        after = grown(input_ids=tokens, use_cache=False).logits
    assert torch.isfinite(after).all()
    num_before, num_after = (sum(p.numel() for p in model.parameters()) for model in (base, grown))
    assert num_after > 1.3 * num_before
    if torch.equal(after, before):
        return "exact"
    return "rounding" if float((after - before).abs().max()) < 1e-5 * float(before.abs().max()) else "new"


def test_the_committed_table_is_what_is_seen() -> None:
    rows = []
    for family in TINY_FAMILIES:
        base = random_model(tiny_config(family, num_layers=2))
        cells = {column: observe(base, growth) for column, growth in COLUMNS.items()}
        for column, growth in COLUMNS.items():
            assert (cells[column] != "-") == (family in SUPPORT[(growth.direction, growth.operator)]), (family, column)
        rows.append(f"| {family} | {' | '.join(cells.values())} |\n")
    head = f"| family | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n"
    table = LEGEND + head + "".join(rows)
    if os.environ.get("GROWTHLAW_WRITE_TABLES"):
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table


def test_every_pair_is_in_the_matrix() -> None:
    assert set(SUPPORT) == set(itertools.product(("depth", "width"), ("direct", "zero", "random", "learn")))
    assert set(TINY_FAMILIES) == {family for families in SUPPORT.values() for family in families}


def test_a_refusal_names_the_pair_and_what_would_do() -> None:
    with pytest.raises(
        InputError, match="'random' in depth is not defined for 'gemma2', only for llama, mistral"
    ) as refusal:
        check_supported("gemma2", "depth", "random")
    assert "'gemma2' grows by depth direct, depth zero" in str(refusal.value)
    with pytest.raises(InputError, match="is 'opt', but known are llama,"):
        check_supported("opt", "depth", "direct")
