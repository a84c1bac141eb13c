"""Matmul flops of a function, counted in its jaxpr: XLA's own count takes the body of a loop once."""

import math
from typing import Any

import jax
from jax.extend import core


def matmul_flops(function, *arguments: Any) -> int:
    """2 m n k of every matrix product; nothing is computed.

    Those of a scan count as often as it runs, those of a while loop, whose rounds are not known, once. Of a conditional's
    branches the dearest counts.

    Args:
      function: any traceable function.
      *arguments: arrays or abstract arrays.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[i] for i in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        if equation.primitive.name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
            continue
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += rounds * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
