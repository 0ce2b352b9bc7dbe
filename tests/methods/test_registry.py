"""A new method and a new backbone: one definition each, and nothing else has to know them."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig, TrainConfig
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.memory import Memory, PassInputs
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.network import Network
from rec2pm_jax.methods.registry import METHODS, config_hash, make_method, register_method
from rec2pm_jax.methods.windows import cut_windows
from rec2pm_jax.nn.attention import KeyValues
from rec2pm_jax.nn.registry import BACKBONES, LayerSpec, register_backbone
from rec2pm_jax.training.loop import train_and_evaluate
from tests.helpers.data import prepare_log, random_log


@dataclasses.dataclass(frozen=True)
class DecayedMean(Memory):
    """m_k = (m_{k-1} + mean of the segment's item vectors) / 2, added to what recent events say."""

    @property
    def slots(self):
        return 1

    @property
    def capacity(self):
        return 1

    def read_inputs(self, params, state, window):
        layout = layouts.causal(window.size, window.row_times, window.events.times)
        positions = np.arange(window.size, dtype=np.int32)[None]
        return PassInputs(self.network.embed(params, window, positions), layout)

    def add_to_outputs(self, params, state, window, vectors):
        memory = state.memory[:, 0].astype(vectors.dtype)
        return vectors + (memory if vectors.ndim == 2 else memory[:, None])

    def new_memory(self, params, state, window):
        items = 50 * self.network.table(params)[window.events.ids]
        return (state.memory + jnp.mean(items, axis=1, keepdims=True)) / 2


def decayed_mean_loss(method, params, batch, rng):
    cut = cut_windows(batch, method.config.data, rng)
    state = method.memory.counts_before(cut)
    x, layout, _ = method.memory.read_inputs(params, state, cut.windows)
    outputs, _ = method.network.run(params, x, layout)
    readout = method.memory.readout(params, state, cut.windows, outputs)
    at = (cut.targets, cut.weights, rng, cut.windows.step_rows)
    return {"ar": method.network.next_item(params, readout, *at)}


class AverageLayer(nn.Module):
    """Each row adds the mean of all tokens' values: no attention, no cache."""

    spec: LayerSpec

    @nn.compact
    def __call__(self, x, layout, rows, cache=None, wanted=None):
        values = nn.Dense(self.spec.config.dim, name="value")(x)
        out = x + jnp.mean(values, axis=1, keepdims=True)
        heads = values[:, :, None]
        return (out if wanted is None else wanted.of(out)), KeyValues(heads, heads)


@pytest.fixture
def plugins(monkeypatch):
    """Registered for one test only."""
    for registry in (METHODS, BACKBONES):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register_method("decayed_mean", reads=("slots",))
    def make_decayed_mean(config, num_items):
        network = Network(config, num_items, config.data.read_length)
        return Method(DecayedMean(network), decayed_mean_loss)

    register_backbone("average")(AverageLayer)


def test_a_new_method_trains_and_is_evaluated(plugins, tmp_path):
    prepare_log(random_log(), tmp_path)
    dataset = open_dataset(tmp_path / "data")
    config = Config(
        data=DataConfig(segment=3, segments=2, protocol="leave_one_out"),
        model=ModelConfig(layers=1, heads=1, dim=8, dropout=0.0),
        method=MethodConfig(name="decayed_mean"),
        train=TrainConfig(steps=2, batch_size=4, eval_every=2, checkpoint_every=2),
    )
    method = make_method(config, dataset.num_items)
    assert method.memory_kind == "overwrite" and not method.can_compress
    summary = train_and_evaluate(config, dataset, method, tmp_path / "run")
    assert summary["steps"] == 2
    params = jax.jit(method.init)(jax.random.key(0))
    record = evaluate(method, params, dataset, EvalSpec("test")).record(config={})
    assert record["method"] == "decayed_mean" and record["memory"] == "overwrite"
    assert record["state_bytes_per_user"] == 8 * 4 + 94 * 8  # the memory and the exact memory
    assert record["swap"]["ndcg@10"] is not None  # its memory is swapped like any other


def test_a_new_method_names_the_fields_of_its_hash(plugins):
    base = Config(method=MethodConfig(name="decayed_mean"))
    changed = dataclasses.replace(base, method=MethodConfig(name="decayed_mean", slots=8))
    other = dataclasses.replace(base, method=MethodConfig(name="decayed_mean", consistency=9.0))
    assert config_hash(changed) != config_hash(base) == config_hash(other)


def test_a_new_backbone_serves_every_method(plugins):
    for name in ("full", "rec2pm", "tok_serial"):
        config = Config(
            data=DataConfig(segment=3, segments=2),
            model=ModelConfig(backbone="average", layers=2, heads=1, dim=8, dropout=0.0),
            method=MethodConfig(name=name),
        )
        method = make_method(config, 20)
        params = jax.jit(method.init)(jax.random.key(0))
        assert set(params["backbone"]["layers"]) == {"value"}
        batch = {"ids": np.arange(1, 15).reshape(2, 7), "index": np.arange(2, dtype=np.int32)}
        batch["ids"] = batch["ids"].astype(np.int32)
        total, weight = jax.jit(lambda p, m=method, b=batch: m.loss(p, b, None))(params)["ar"]
        assert np.isfinite(total) and weight == 12


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(
        UserError, match='kv_mask, linear_recurrence, persrec, rec2pm.*Did you mean "rec2pm"'
    ):
        make_method(Config(method=MethodConfig(name="rec2pn")), 3)
    with pytest.raises(UserError, match='hstu, lru, sasrec.*Did you mean "hstu"'):
        make_method(Config(model=ModelConfig(backbone="hst")), 3)
