"""Arithmetic that a user writes, as ``step * 1024 * 4096``: numbers, names, + - * / // % and brackets. Parsed, never run."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fitting.errors import InputError

_LONGEST = 500
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_MEND = "write numbers, column names, + - * / // % and brackets, as in 'step * 1024 * 4096'"


class Expression:
    """A checked expression.

    Args:
        text: at most 500 characters; a leading ``NAME =`` for the field's own name is taken.
        field: what an error calls it.

    Raises:
        InputError: it holds anything but arithmetic.
    """

    def __init__(self, text: str, field: str) -> None:
        self.text, self.field = text, field
        body = text.strip()
        left, equals, right = body.partition("=")
        if equals and left.strip() == "tokens":
            body = right.strip()
        if len(body) > _LONGEST:
            raise InputError(field, f"is {len(body)} characters long (limit {_LONGEST})", _MEND)
        try:
            tree = ast.parse(body, mode="eval").body
            self.names: frozenset[str] = frozenset(self._check(tree))
            self._value = _function(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(field, f"is {text[:80]!r}, which is no arithmetic", _MEND) from None

    def value(self, values: Mapping[str, float]) -> float | None:
        """The number for these names; None where a name has no value, or the result is no finite number."""
        if not self.names <= values.keys():
            return None
        try:
            found = float(self._value(values))
        except (ZeroDivisionError, OverflowError):
            return None
        return found if math.isfinite(found) else None

    def _check(self, node: ast.expr) -> set[str]:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return set()
        if isinstance(node, ast.Name):
            return {node.id}
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._check(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self._check(node.left) | self._check(node.right)
        raise InputError(self.field, f"is {self.text[:80]!r}, which is more than arithmetic", _MEND)


def _function(node: ast.expr) -> Callable[[Mapping[str, float]], Any]:
    """A checked tree as a function of its names: a log may ask it a million times."""
    if isinstance(node, ast.Constant):
        constant = node.value
        return lambda values: constant
    if isinstance(node, ast.Name):
        return operator.itemgetter(node.id)
    if isinstance(node, ast.UnaryOp):
        operand = _function(node.operand)
        return lambda values: -operand(values)
    assert isinstance(node, ast.BinOp)
    do, left, right = _OPERATORS[type(node.op)], _function(node.left), _function(node.right)
    return lambda values: do(left(values), right(values))
