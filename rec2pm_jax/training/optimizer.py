"""AdamW with warm-up, a decay mask and clipping by global norm, built from `config.optim`.

The item table may have a separate optimizer, see `rowwise_adagrad`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from rec2pm_jax.config import OptimConfig
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.training.rowwise_adagrad import rowwise_adagrad
from rec2pm_jax.typing import Array, Params

BETAS = (0.9, 0.98)  # of AdamW
FINAL_FRACTION = 0.01  # the cosine ends at this share of the peak learning rate

# Parts of parameter names that mark vectors and tables, which weight decay would only shrink. Names
# decide as well as rank, because layers stacked for a scan give their biases a leading axis.
_UNDECAYED = ("embedding", "norm", "bias", "scale")


def is_decayed(path: str, ndim: int) -> bool:
    """Return whether weight decay applies: to matrices that are not embeddings, biases or norms.

    Args:
      path: parameter names joined by '/'.
      ndim: the rank of the parameter.

    >>> is_decayed("layers/attention/kernel", 3), is_decayed("layers/norm/scale", 2)
    (True, False)
    """
    return ndim >= 2 and not any(part in path.lower() for part in _UNDECAYED)


def decay_mask(params: Params) -> Params:
    """Return a pytree of bools like `params`, true for parameters with weight decay."""

    def decayed(path: Any, leaf: Array) -> bool:
        return is_decayed(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.ndim)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_schedule(optim: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then constant or a cosine to 1 % of the peak.

    Step 0 already learns (rate `learning_rate / warmup_steps`). The cosine starts where the warm-up
    ends and reaches its floor at `total_steps`.

    Args:
      optim: the optimizer's configuration.
      total_steps: end of the cosine.

    >>> from rec2pm_jax.config import OptimConfig
    >>> schedule = make_schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), 12)
    >>> [round(float(schedule(step)), 3) for step in (0, 3, 12)]
    [0.25, 1.0, 0.01]
    """
    peak, warmup = optim.learning_rate, optim.warmup_steps
    if optim.schedule == "cosine":
        length = max(1, total_steps - warmup)
        main = optax.cosine_decay_schedule(peak, length, alpha=FINAL_FRACTION)
    else:
        main = optax.constant_schedule(peak)
    if warmup <= 1:
        return main
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(optim: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Return the optimizer of all parameters of a whole table.

    It clips by global norm, then applies AdamW, or row-wise Adagrad to the item table.

    Args:
      optim: the optimizer's configuration.
      total_steps: steps of the run, for the schedule.
    """
    update = make_dense_optimizer(optim, total_steps)
    if optim.table_learning_rate is not None:
        table = rowwise_adagrad(make_table_schedule(optim, total_steps))
        update = optax.partition({"dense": update, "table": table}, _label_parameters)
    if optim.clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), update)


def make_dense_optimizer(optim: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Return AdamW without clipping; arguments as in `make_optimizer`."""
    return optax.adamw(
        make_schedule(optim, total_steps),
        b1=BETAS[0],
        b2=BETAS[1],
        weight_decay=optim.weight_decay,
        mask=decay_mask,
    )


def make_table_schedule(optim: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the learning rate of row-wise Adagrad by step; arguments as in `make_schedule`."""
    peak = optim.table_learning_rate
    assert peak is not None, "row-wise Adagrad has a learning rate of its own"
    return make_schedule(dataclasses.replace(optim, learning_rate=peak), total_steps)


def _label_parameters(params: Params) -> Params:
    """Return the label of the optimizer of every parameter: "table" or "dense"."""

    def label(path: Any, leaf: Array) -> str:
        return "table" if path and path[-1] == jax.tree_util.DictKey(TABLE) else "dense"

    return jax.tree_util.tree_map_with_path(label, params)
