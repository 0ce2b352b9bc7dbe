"""Tok-Serial: recurrent memory trained by back-propagation through time (RMT, Bulatov et al. 2022)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rec2pm_jax.methods.memory import fold
from rec2pm_jax.methods.recurrent import TokenMemory
from rec2pm_jax.typing import Batch, Terms


@dataclasses.dataclass(frozen=True)
class TokSerial(TokenMemory):
    """Training scans the segments in order, each [M_{h-1}; S_h; Q] with the live memory of the last."""

    def loss(self, params, batch: Batch, rng, *, step, target_params=None) -> Terms:
        """Term `ar`, summed over all segments; its gradient crosses segments through the memory.

        With `method.truncate` = T, the memory that enters segments T, 2T, .. carries no gradient.
        """
        data, method = self.config.data, self.config.method
        drop_rng, negative_rng = (None, None) if rng is None else jax.random.split(rng)
        windows = self._training_windows(params, batch)
        users = batch["ids"].shape[0]

        def by_segment(a):  # B*K ... -> K B ...
            return jnp.swapaxes(a.reshape(users, data.segments, *a.shape[1:]), 0, 1)

        def body(state, inputs):
            window, h = inputs
            if method.truncate:
                stopped = jax.lax.stop_gradient(state.memory)
                cut = h % method.truncate == 0
                state = state._replace(memory=jnp.where(cut, stopped, state.memory))
            items, at_queries = self._update_windows(params, state, window, drop_rng)
            memory = self._leave(params, at_queries, state)
            return fold(state, memory, window.lengths > 0), items

        if method.remat:
            # The scan itself keeps the two computations apart.
            body = jax.checkpoint(body, prevent_cse=False)
        segments = (jax.tree.map(by_segment, windows), jnp.arange(data.segments))
        _, items = jax.lax.scan(body, self.init_state(params, users), segments)
        items = jnp.swapaxes(items, 0, 1).reshape(-1, *items.shape[2:])  # K B N W -> B*K N W
        at = (windows.targets, windows.weights, negative_rng, windows.rows)
        return {"ar": self.network.next_item(params, items, *at)}
