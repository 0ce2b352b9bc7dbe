"""A tiny rec2pm over a sharded table: its config, batches, and the same step on one whole table."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rec2pm_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from rec2pm_jax.methods.network import with_step_rows
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import ids_to_rows, packed_shape, table_rows
from rec2pm_jax.nn.embedding import TABLE
from rec2pm_jax.training import partition as partition_lib
from rec2pm_jax.training.optimizer import make_optimizer
from rec2pm_jax.training.partition import AXIS, make_mesh
from rec2pm_jax.training.sharded_step import draw_negatives
from rec2pm_jax.training.step import batch_gradient, step_rng

ITEMS, BATCH = 9000, 16  # three rows per slice, the last not full

CONFIG = Config(
    data=DataConfig(segment=3, segments=3),
    model=ModelConfig(layers=1, heads=2, dim=8, dropout=0.0, table="sharded"),
    method=MethodConfig(slots=2, exact_entries=4),
    loss=LossConfig(negatives=32),
    optim=OptimConfig(
        learning_rate=0.02, warmup_steps=3, schedule="constant", table_learning_rate=0.02
    ),
    train=TrainConfig(batch_size=BATCH, steps=20),
    compute=ComputeConfig(devices=0),
)


def config_of(config: Config = CONFIG, **sections) -> Config:
    """Return `config` with fields of some sections replaced, as in `compute={"devices": 2}`."""
    changed = {s: dataclasses.replace(getattr(config, s), **f) for s, f in sections.items()}
    return dataclasses.replace(config, **changed)


def batches(config: Config, steps: int, items: int = ITEMS):
    """Yield batches of popular and rare items; some histories are short."""
    rng = np.random.default_rng(0)
    size, length = config.train.batch_size, config.data.window + 1
    for step in range(steps):
        ids = np.minimum(rng.zipf(1.3, (size, length)), items).astype(np.int32)
        ids[np.arange(length) >= rng.integers(3, length + 1, size)[:, None]] = 0
        yield {"ids": ids, "index": np.arange(size, dtype=np.int32) + size * step}


def train(config: Config, steps: int = 20):
    """Return the final state, gathered to numpy, and the metrics of every step."""
    partition = partition_lib.make_partition(config, make_method(config, ITEMS))
    state, log = partition.init(), []
    for batch in batches(config, steps):
        state, metrics = partition.step(state, batch)
        log.append(jax.device_get(metrics))
    return jax.device_get(partition.gather(state)), log


def by_id(params, config: Config = CONFIG):
    """Return params with the table [V, W] in the order of ids."""
    embedding = params["embedding"]
    table = embedding[TABLE].reshape(-1, config.model.dim)
    table = table[ids_to_rows(np.arange(ITEMS + 1), len(table))]
    return {**params, "embedding": {**embedding, TABLE: table}}


def train_whole(config: Config, params, steps: int):
    """Train in the plain way: one device, the whole table, its dense gradient."""
    method = make_method(config_of(config, model={"table": "whole"}), ITEMS)
    optimizer = make_optimizer(config.optim, config.train.steps)

    @jax.jit
    def step(params, opt_state, number, batch):
        rng = step_rng(config.train.seed, number)
        negatives = draw_negatives(rng, config.loss.negatives, ITEMS)
        gradient, loss, _ = batch_gradient(
            method, lambda p: with_step_rows(p, negatives), params, batch, rng, 1, None
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = optimizer.init(params), []
    for number, batch in enumerate(batches(config, steps)):
        params, opt_state, loss = step(params, opt_state, jnp.int32(number), batch)
        losses.append(float(loss))
    return params, losses


def shard_table(by_id: np.ndarray, devices: int):
    """Spread a table [V, D] in the order of ids over the first devices; unused rows are NaN."""
    rows = table_rows(len(by_id) - 1)
    table = np.full((rows, by_id.shape[1]), np.nan, np.float32)
    table[ids_to_rows(np.arange(len(by_id)), rows)] = by_id
    table = table.reshape(packed_shape(*table.shape))
    return jax.device_put(table, NamedSharding(make_mesh(jax.devices()[:devices]), P(AXIS)))
