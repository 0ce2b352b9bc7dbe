"""--suite=train: a training step of every method, both backbones, and of harder settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, model_case
from launch.benchmarks.flops import matmul_flops
from launch.runs import suited
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.train.partition import make_partition
from rec2pm_jax.typing import Batch


def cases(smoke: bool) -> list[Case]:
    """The reference table first, so that `--only` finds it in few groups."""
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    sasrec, hstu = (
        (settings.SMOKE_SASREC, settings.SMOKE_HSTU) if smoke else (settings.SASREC, settings.HSTU)
    )
    rows = []

    def add(
        group: str, model: dict[str, Any], methods: str, name: str = "", items=items, **changes
    ):
        for method in methods.split():
            config = settings.setting(method, model, smoke=smoke, **changes)
            rows.append(step_case(config, items, group, name))

    def micro(parts: int) -> dict[str, int]:
        return {"accumulate": 1 if smoke else parts}  # on a CPU, see `step`

    add("sasrec", sasrec, "full rec2pm_o tok_serial_o rec2pm_sketch", compute=micro(8))
    add("hstu", hstu, "full rec2pm_o", compute=micro(8))
    add("sasrec, other methods", sasrec, "recent rec2pm_a kv_mask_o", compute=micro(8))
    add("hstu, other methods", hstu, "recent tok_serial_o", compute=micro(8))
    add("hstu, more methods", hstu, "rec2pm_a kv_mask_o", compute=micro(8))
    if smoke:
        return rows
    add(
        "many segments",
        settings.DEVELOPMENT,
        "full rec2pm_o tok_serial_o kv_mask_o",
        items=settings.FEW_ITEMS,
        compute=micro(4),
        **settings.MANY_SEGMENTS,
    )
    add("wide", sasrec | {"dim": 256}, "full", compute=micro(8))
    full_softmax = {"kind": "full_softmax"}
    add("full softmax", sasrec, "full", "full_softmax/1000000", items=1_000_000, loss=full_softmax)
    return rows


def step_case(config: Config, items: int, group: str, name: str = "", **fields) -> Case:
    case = model_case(
        config,
        name=name,
        group=group,
        build="train:step",
        mode="step",
        items=items,
        batch=config.train.batch_size,
        length=config.data.window,
    )
    extra = {"dropout": config.model.dropout}
    return case._replace(row=case.row | extra | fields)


def step(config: dict[str, Any], items: int) -> Work:
    """The step as `launch.train` compiles it, state donated; batches come from the host."""
    config = suited(from_dict(config))
    method, train = make_method(config, items), config.train
    partition = make_partition(config, method)
    batch = settings.random_batch(config, items)
    state = partition.init()

    def run():
        nonlocal state
        state, _ = jax.block_until_ready(partition.step(state, batch))

    memory = jax.eval_shape(lambda p: method.init_state(p, 1), state.params).memory
    return Work(
        run,
        tokens=train.batch_size * config.data.window,
        flops=lambda: gradient_flops(method, state.params, batch),
        fields={
            "state_bytes_per_user": memory.size * memory.dtype.itemsize,
            "accumulate": config.compute.accumulate,
        },
    )


class _OneProduct(Network):
    """Scores the candidates of all positions in one product. It is only ever traced, to be counted:
    the real loss works in as many chunks as the data need, and makes some numbers twice."""

    def next_item(self, params, vectors, targets, weights, rng, rows):
        loss, table = self.config.loss, self.table(params)
        x = vectors.reshape(-1, vectors.shape[-1]).astype(table.dtype)
        if loss.kind == "full_softmax":
            logits = x @ table[1:].T
        elif loss.sharing == "shared":
            logits = x @ table[jnp.arange(loss.negatives + 1)].T
        else:
            own = jnp.zeros((x.shape[0], loss.negatives + 1), jnp.int32)
            logits = jnp.einsum("td,trd->tr", x, table[own])
        return jnp.sum(logits), jnp.sum(weights)


def gradient_flops(method: Method, params, batch: Batch) -> float:
    """Matmul FLOPs of the loss and its gradient over a batch; the optimiser has none.

    What an implementation computes a second time to save memory is no work of the model: attention is
    counted as `dense` does it.
    """
    compute = dataclasses.replace(method.config.compute, attention="dense")
    config = dataclasses.replace(method.config, compute=compute)
    counted = make_method(config, method.num_items)
    network = _OneProduct(config, method.num_items, method.read_length)
    counted.__dict__["network"] = network  # where its cached property would put it

    def objective(params, batch):
        terms = counted.loss(params, batch, jax.random.key(0), step=0)
        return sum(value for value, _ in terms.values())

    return matmul_flops(jax.grad(objective), params, batch)
