"""FLOPs of the matrix products in a function, counted in its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, and the lowering decides what is a loop. Here the
body of a scan counts as often as it runs; on unrolled programs both agree (tests/launch/test_bench.py).
Elementwise work is left out: these are the FLOPs of "model FLOPs utilisation".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_matmul_flops(function: Callable[..., Any], *args: Any) -> float:
    """Return 2 x multiply-adds of every matrix product in one call of a function.

    Of the branches of a condition the most expensive one counts.

    Args:
      function: what to trace.
      args: its arguments, or their shapes.

    Raises:
      ValueError: there are products inside a loop whose trip count depends on data.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    inputs: Sequence[Any] = [variable.aval for variable in equation.invars]
    output: Any = equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = inputs[0].shape
        depth = math.prod(left[i] for i in contracted)
        return 2.0 * depth * math.prod(output.shape)
    if name == "pallas_call":  # its grid and loops are not in the jaxpr
        return params["cost_estimate"].flops
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _find_jaxprs(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("matrix products in a while loop: its trip count is not known")
    return sum(inner)


def _find_jaxprs(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _find_jaxprs(part)
