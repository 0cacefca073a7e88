"""Numbers that show how they were come by: formulas are kept as text and it is the text that is computed.

An auditor who reads `download_cpu_hours = listed * download_cpu_seconds / 3600` reads what ran, not what somebody noted beside it.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from winnow.errors import ConfigError

OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: Mapping[str, Callable[..., float]] = {"max": max, "min": min, "ceil": math.ceil, "floor": math.floor, "log": math.log}


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A number that is not computed here."""

    value: float
    unit: str
    origin: str
    """Where it is from: the plan's file, a measurement, receipts, or a default with its source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A computed number."""

    name: str
    value: float
    unit: str
    formula: str
    inputs: dict[str, float]
    """Every name in the formula, with what it stood for."""


@dataclass
class Ledger:
    """Given numbers and what follows from them, in the order in which it was computed."""

    given: dict[str, Given] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)

    def give(self, name: str, value: float, unit: str, origin: str) -> None:
        assert name not in self.given and name not in self.lines, f"{name} is there already"
        self.given[name] = Given(value=value, unit=unit, origin=origin)

    def compute(self, name: str, unit: str, formula: str) -> float:
        """Computes a formula of numbers that are there, and keeps it with them.

        Raises:
            ConfigError: it divides by zero, for example by a rate given as 0.
        """
        assert name not in self.given and name not in self.lines, f"{name} is there already"
        tree = ast.parse(formula, mode="eval").body
        names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - FUNCTIONS.keys())
        inputs = {used: self[used] for used in names}
        try:
            value = float(_value(tree, inputs))
        except ZeroDivisionError:
            zeros = ", ".join(used for used, number in inputs.items() if number == 0)
            raise ConfigError(f"{name} = {formula} divides by zero: {zeros} must be above 0") from None
        self.lines[name] = Line(name=name, value=value, unit=unit, formula=formula, inputs=inputs)
        return value

    def __getitem__(self, name: str) -> float:
        return self.given[name].value if name in self.given else self.lines[name].value

    def largest(self, name: str) -> str:
        """Which argument of a computed maximum decided, as its text stands in the formula."""
        line = self.lines[name]
        calls = [node for node in ast.walk(ast.parse(line.formula)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "max"]
        assert len(calls) == 1, f"{line.formula} has not one maximum"
        return ast.unparse(max(calls[0].args, key=lambda argument: _value(argument, line.inputs)))


def _value(node: ast.expr, inputs: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        return inputs[node.id]
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left, inputs), _value(node.right, inputs))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords, ast.dump(node)
    return FUNCTIONS[node.func.id](*(_value(argument, inputs) for argument in node.args))
