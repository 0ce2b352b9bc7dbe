"""Evaluate in several processes: each reads a share of the users, and all get the same results."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rec2pm_jax.errors import UserError


def share_users(users: np.ndarray) -> np.ndarray:
    """Return the users that this process of the job evaluates, in their order.

    Raises:
      UserError: there are fewer users than processes.
    """
    processes = jax.process_count()
    if len(users) < processes:
        raise UserError(
            f"{len(users)} users to evaluate and {processes} processes: evaluate more users "
            "(config.train.eval_users in training), or start fewer processes."
        )
    return users[jax.process_index() :: processes]


class Gathering:
    """Brings rows of all processes together, in an order that their number does not change.

    Every process makes the same calls. With one process nothing changes.

    Attributes:
      mine: places of this process's rows among those of all processes, int [n] or a slice.
    """

    def __init__(self, *keys: np.ndarray) -> None:
        """Prepare to gather rows.

        Args:
          keys: int [n], what this process's rows are sorted by, the most significant key first. n may
            differ between processes. Together they tell all rows apart.
        """
        self.mine: Any = slice(None)
        self._order: Any = slice(None)
        self._counts = np.array([len(keys[0])])
        if jax.process_count() > 1:
            count = np.int32(len(keys[0]))
            self._counts = np.asarray(multihost_utils.process_allgather(count)).reshape(-1)
            self._order = np.lexsort([self._join(key) for key in reversed(keys)])
            owner = np.repeat(np.arange(len(self._counts)), self._counts)
            self.mine = np.flatnonzero(owner[self._order] == jax.process_index())

    def gather(self, tree: Any) -> Any:
        """Return the rows of all processes.

        Args:
          tree: of numpy arrays [n, ...], alike in all processes apart from n; integers below 2^31.
        """
        if len(self._counts) == 1:
            return tree
        return jax.tree.map(lambda array: self._join(array)[self._order], tree)

    def _join(self, array: np.ndarray) -> np.ndarray:
        """Concatenate arrays [n, ...] over the processes."""
        # JAX would cut 64 bits to 32.
        sent = array.astype(np.int32) if array.dtype == np.int64 else array
        if not array[:1].size and array.ndim > 1:  # rows without numbers
            return np.zeros((self._counts.sum(), *array.shape[1:]), array.dtype)
        room = int(self._counts.max()) - len(array)
        padded = np.pad(sent, ((0, room),) + ((0, 0),) * (array.ndim - 1))
        parts = multihost_utils.process_allgather(padded)
        kept = [np.asarray(part)[:n] for part, n in zip(parts, self._counts, strict=True)]
        return np.concatenate(kept).astype(array.dtype)
