"""FLOPs of the matrix products in a function, counted in its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, and the lowering decides what is a loop. Here a
scan counts its body as often as it runs; on unrolled programs both agree (tests/launch/test_bench.py).
Elementwise work, which is no reason to own a matrix unit, is left out: these are the FLOPs of
"model FLOPs utilisation".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(function: Callable, *args) -> float:
    """2 x multiply-adds of every product in one call of `function`; args may be shapes only.

    A branch counts as its most expensive one.

    Raises:
      ValueError: products inside a loop whose number of turns only the data know.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        depth = math.prod(left[i] for i in contracted)
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "pallas_call":  # its grid and its loops are its own affair: what it says of itself
        return params["cost_estimate"].flops
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("matrix products in a while loop: the number of turns is not known")
    return sum(inner)


def _jaxprs(value):
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)
