"""--suite=train: a training step of every method with both backbones, and of harder settings.

--suite=torch: a step of SASRec in PyTorch beside ours.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, Workload, make_model_case
from launch.benchmarks.flops import count_matmul_flops
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.runs import fit_to_backend
from rec2pm_jax.training.partition import make_partition
from rec2pm_jax.typing import Batch, Params


def make_cases(smoke: bool) -> list[Case]:
    """Return the rows: those of the reference table first, in few groups."""
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    sasrec, hstu = (
        (settings.SMOKE_SASREC, settings.SMOKE_HSTU) if smoke else (settings.SASREC, settings.HSTU)
    )
    rows: list[Case] = []

    def add(group: str, model: dict[str, Any], methods: str, **changes: dict[str, Any]) -> None:
        for method in methods.split():
            config = settings.make_config(method, model, smoke=smoke, **changes)
            rows.append(make_step_case(config, items, group))

    def micro(parts: int) -> dict[str, int]:
        return {"accumulate": 1 if smoke else parts}  # on a CPU, see `build_step`

    add("sasrec", sasrec, "full rec2pm_o tok_serial_o", compute=micro(8))
    add("hstu", hstu, "full rec2pm_o", compute=micro(8))
    add("sasrec, other methods", sasrec, "recent rec2pm_a kv_mask_o", compute=micro(8))
    add("hstu, other methods", hstu, "recent tok_serial_o", compute=micro(8))
    add("hstu, more methods", hstu, "rec2pm_a kv_mask_o", compute=micro(8))
    if smoke:
        return rows
    changes: dict[str, Any] = {"compute": micro(4)} | settings.MANY_SEGMENTS
    for method in ("full", "rec2pm_o", "tok_serial_o", "kv_mask_o"):
        config = settings.make_config(method, settings.DEVELOPMENT, **changes)
        rows.append(make_step_case(config, settings.FEW_ITEMS, "many segments"))
    add("wide", sasrec | {"dim": 256}, "full", compute=micro(8))
    config = settings.make_config("full", sasrec, loss={"negatives": None})
    rows.append(make_step_case(config, 1_000_000, "full softmax", "full_softmax/1000000"))
    return rows


def make_torch_cases(smoke: bool) -> list[Case]:
    """Return the rows of a plain SASRec: `full`, and PyTorch's in both modes, equal sizes."""
    sizes: list[tuple[dict[str, Any], int, dict[str, Any]]] = [
        (settings.DEVELOPMENT, settings.FEW_ITEMS, settings.MANY_SEGMENTS),
        (settings.SASREC, settings.ITEMS, {}),
    ]
    if smoke:
        sizes = [(settings.SMOKE_SASREC, settings.SMOKE_ITEMS, {})]
    rows = []
    for model, items, changes in sizes:
        plain = model | {"repeat_head": False, "use_times": False}
        config = settings.make_config("full", plain, smoke=smoke, **changes)
        ours = make_step_case(config, items, f"{model['layers']} layers")
        rows.append(ours)
        for mode in ("default", "reduce-overhead"):
            options = ours.options | {"mode": mode}
            row = ours.row | {"method": "torch", "mode": f"step, {mode}"}
            name = f"torch/{ours.name}/{mode}"
            rows.append(Case(name, ours.group, "torch_sasrec:build_step", options, row))
    return rows


def make_step_case(config: Config, items: int, group: str, name: str = "", **fields: Any) -> Case:
    """Return the row of a training step.

    Args:
      config: the whole configuration.
      items: size of the catalogue.
      group: see `Case`.
      name: see `make_model_case`.
      fields: more fields of the record.
    """
    workload = Workload("step", items, config.train.batch_size, config.data.window)
    case = make_model_case(config, workload, name=name, group=group, build="train:build_step")
    extra = {"dropout": config.model.dropout}
    return case._replace(row=case.row | extra | fields)


def build_step(config: dict[str, Any], items: int) -> Work:
    """Return the step as `launch.train` compiles it, state donated; batches come from the host.

    On accelerators it takes whole batches; micro-batches are for the caches of CPU cores.
    """
    return _build_step(fit_to_backend(from_dict(config)), items)


def _build_step(config: Config, items: int) -> Work:
    method, train = make_method(config, items), config.train
    partition = make_partition(config, method)
    batch = settings.random_batch(config, items)
    state = partition.init()

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(partition.step(state, batch))

    memory = jax.eval_shape(lambda p: method.init_state(p, 1), state.params).memory
    return Work(
        run,
        tokens=train.batch_size * config.data.window,
        flops=lambda: count_gradient_flops(method, state.params, batch),
        fields={
            "state_bytes_per_user": memory.size * memory.dtype.itemsize,
            "accumulate": config.compute.accumulate,
        },
    )


class _OneProduct(Network):
    """Scores the candidates of all positions in one product.

    It is only traced, to be counted: the real loss works in as many chunks as the data need, and
    computes some numbers twice.
    """

    def next_item(
        self, params: Any, readout: Any, targets: Any, weights: Any, rng: Any, rows: Any
    ) -> tuple[jax.Array, jax.Array]:
        loss, table = self.config.loss, self.table(params)
        x = readout.vectors.reshape(-1, readout.vectors.shape[-1]).astype(table.dtype)
        if loss.negatives is None:
            logits = x @ table[1:].T
        elif loss.sharing == "shared":
            logits = x @ table[jnp.arange(loss.negatives + 1)].T
        else:
            own = jnp.zeros((x.shape[0], loss.negatives + 1), jnp.int32)
            logits = jnp.einsum("td,trd->tr", x, table[own])
        return jnp.sum(logits), jnp.sum(weights)


def count_gradient_flops(method: Method, params: Params, batch: Batch) -> float:
    """Return the matmul FLOPs of the loss and its gradient over a batch; the optimiser has none.

    Work that an implementation repeats to save memory does not count: attention counts as `dense`.
    """
    compute = dataclasses.replace(method.config.compute, attention="dense")
    config = dataclasses.replace(method.config, compute=compute)
    network = method.network
    network = _OneProduct(config, network.num_items, network.max_positions)
    counted = dataclasses.replace(
        method, memory=dataclasses.replace(method.memory, network=network)
    )

    def objective(params: Params, batch: Batch) -> Any:
        terms = counted.loss(params, batch, jax.random.key(0))
        return sum(value for value, _ in terms.values())

    return count_matmul_flops(jax.grad(objective), params, batch)
