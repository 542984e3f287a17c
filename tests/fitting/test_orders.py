"""Orders of layers, against the patterns and connection rates that the G_stack paper prints."""

from __future__ import annotations

import itertools

import pytest

from fitting.errors import InputError
from fitting.orders import connection_rate, first_occurrences, order_length, source_layers, stacked_layers

# arXiv 2405.15319, "how to stack": twelve ways to make a target of a base, with the paper's connection rates in percent.
# It prints 60.7 where 14 of 23 links, 60.9, are kept, and 74.0 for 17 of 23: hence the tolerance of 0.2.
PAPER_RATES = (
    ("stack", 3, 6, 80.0),
    ("interpose", 3, 6, 40.0),
    ("stack", 8, 24, 91.3),
    ("interpose", 8, 24, 30.4),
    ("123456*4", 6, 24, 87.0),
    ("12-3456*5-56", 6, 24, 78.3),
    ("12-345*7-6", 6, 24, 74.0),
    ("123-456*7", 6, 24, 74.0),
    ("1234-56*10", 6, 24, 60.7),
    ("12-34*10-56", 6, 24, 60.7),
    ("1-234*7-56", 6, 24, 74.0),
    ("123*7-456", 6, 24, 74.0),
)


@pytest.mark.parametrize(("order", "num_base", "num_target", "percent"), PAPER_RATES)
def test_connection_rates_of_the_papers_twelve_patterns(
    order: str, num_base: int, num_target: int, percent: float
) -> None:
    assert 100 * connection_rate(source_layers(order, num_base, num_target)) == pytest.approx(percent, abs=0.2)


@pytest.mark.parametrize(
    ("order", "num_base", "layers"),
    [
        ("stack", 3, (0, 1, 2, 0, 1, 2)),
        ("stack", 3, (0, 1, 2, 0, 1, 2, 1, 2)),
        ("interpose", 3, (0, 0, 1, 1, 2, 2)),
        ("middle:1:1", 4, (0, 1, 2, 1, 2, 3)),
        ("middle:1:1", 4, (0, 1, 2, 1, 2, 2, 3)),
        ("middle:1:1:interpose", 4, (0, 1, 1, 2, 2, 3)),
        ("middle:0:0", 2, (0, 1, 0, 1)),
        ("solar:2", 6, (0, 1, 2, 3, 2, 3, 4, 5)),
        ("list:0,1,1", 2, (0, 1, 1)),
        ("1-23*2-4", 4, (0, 1, 2, 1, 2, 3)),
        ("1..10-9..12*2", 12, (*range(10), *range(8, 12), *range(8, 12))),
    ],
)
def test_orders_in_full(order: str, num_base: int, layers: tuple[int, ...]) -> None:
    assert source_layers(order, num_base, len(layers)) == layers
    fixed = order_length(order, num_base)
    assert fixed == (None if order.partition(":")[0] in ("stack", "interpose", "middle") else len(layers))


def test_no_order_beats_the_partial_stack() -> None:
    """Over all lists of small sizes, which ends on the base's last layer and begins on its first."""
    for num_base, num_target in ((2, 3), (2, 5), (3, 4), (3, 5), (3, 7)):
        stacked = stacked_layers(num_base, num_target)
        best = max(connection_rate(layers) for layers in itertools.product(range(num_base), repeat=num_target))
        assert connection_rate(stacked) == best
        assert (stacked[0], stacked[-1]) == (0, num_base - 1)


def test_first_occurrences() -> None:
    assert first_occurrences((0, 1, 0, 1, 1)) == (True, True, False, False, False)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ("backwards", "known orders"),
        ("", "known orders"),
        ("stack:1", "known orders"),
        ("list:", "no whole number"),
        ("list:a,b,c", "no whole number"),
        ("list:0,-1,1", "no whole number"),
        ("list:0,9,1", "layers 0 to 5 and no 9"),
        ("list:0", "makes 1 layers of 6, but the target has 24"),
        ("123456*3", "makes 18 layers"),
        ("12-9", "layers 1 to 6 and no 9"),
        ("1--2", "no group of layers"),
        ("1*0-2", "names no layer"),
        ("2..1-1", "names no layer"),
        ("1*99999-2", "more than 10,000"),
        ("middle:3:3", "none is left between"),
        ("middle:1", "no middle order"),
        ("middle:1:1:twice", "no middle order"),
        ("solar:", "no whole number"),
        ("solar:7", "no 7"),
    ],
)
def test_bad_orders_are_refused(order: str, says: str) -> None:
    with pytest.raises(InputError, match="order") as caught:
        source_layers(order, 6, 24)
    assert says in str(caught.value)


def test_a_target_must_be_deeper() -> None:
    for num_base, num_target in ((4, 4), (0, 4), (5, 4), (1, 10**9)):
        with pytest.raises(InputError, match="num_base_layers"):
            source_layers("stack", num_base, num_target)
