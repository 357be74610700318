"""Conditions on a trial, such as "{pair/Optimizer.warmup_steps} < {pair/Training.steps} / 4"."""

import ast
import re
from collections.abc import Callable
from typing import Any

from pplx_jax.core.errors import BadInput

# Arithmetic, comparisons and logic over literals; no calls, subscripts or attributes.
_ALLOWED = (
    ast.Expression,
    ast.BoolOp,
    ast.boolop,
    ast.UnaryOp,
    ast.unaryop,
    ast.BinOp,
    ast.operator,
    ast.Compare,
    ast.cmpop,
    ast.Constant,
    ast.Tuple,
    ast.List,
    ast.Name,
    ast.Load,
)


def holds(condition: str, value_of: Callable[[str], Any]) -> bool:
    """Returns whether a trial satisfies `condition`.

    Args:
      condition: a Python expression of comparisons and arithmetic; `{binding}` stands for the value of a binding.
      value_of: returns the value of a binding in the trial.

    Raises:
      BadInput: it is not such an expression, or its values cannot be combined.
    """
    values: dict[str, Any] = {}

    def name_of(match: re.Match[str]) -> str:
        name = f"value_{len(values)}"
        values[name] = value_of(match[1].strip())
        return name

    expression = re.sub(r"\{([^{}]*)\}", name_of, condition)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError:
        raise BadInput(f"not a condition: {condition}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or (isinstance(node, ast.Name) and node.id not in values):
            what = ast.unparse(node) or type(node).__name__
            raise BadInput(f"not a condition: {condition}: {what}; write bindings in braces, compare and calculate")
    try:
        return bool(eval(compile(tree, "<condition>", "eval"), {"__builtins__": {}}, values))
    except (TypeError, ZeroDivisionError) as error:
        raise BadInput(f"{condition}: {error}") from None
