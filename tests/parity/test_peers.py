"""Outputs of the peers' own modules, on their weights, against this project's: see README.md here."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rec2pm_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
)
from rec2pm_jax.methods import kv_mask
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.windows import cut_windows
from rec2pm_jax.nn.catalogue import losses
from rec2pm_jax.presets import load_preset
from rec2pm_jax.typing import Events, Readout

HERE = Path(__file__).parent
CAUSAL = ("genrec_sasrec", "genrec_hstu", "genrec_hstu_position_time", "persrec_hstu")
MASKED = "persrec_hstu_masked"
TOLERANCES = {
    "init": {"vectors": 5e-6, "unit_vectors": 1e-6, "logits": 2e-5, "loss": 5e-6},
    "large": {"vectors": 2e-4, "unit_vectors": 1e-5, "logits": 3e-4, "loss": 1e-5},
}


class Fixture(NamedTuple):
    """One file: name -> array."""

    weights: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    constants: dict[str, Any]
    outputs: dict[str, np.ndarray]

    @property
    def valid(self) -> np.ndarray:
        """bool [B, L], a prefix of each row."""
        return np.arange(self.constants["window"]) < self.inputs["lengths"][:, None]


def load(model: str, scale: str) -> Fixture:
    parts: dict[str, dict] = {"weights": {}, "inputs": {}, "constants": {}, "outputs": {}}
    with np.load(HERE / f"{model}_{scale}.npz", allow_pickle=False) as arrays:
        for name in arrays.files:
            head, _, rest = name.partition("/")
            if head in parts:
                parts[head][rest] = arrays[name]
            else:
                parts["weights"][name] = arrays[name]
    parts["constants"] = {name: value.item() for name, value in parts["constants"].items()}
    return Fixture(**parts)


def config_of(model: str, fixture: Fixture, attention: str = "auto") -> Config:
    constants = fixture.constants
    shared = model.startswith("persrec")
    return Config(
        data=DataConfig(segment=constants["segment"], segments=constants["segments"], recent=1),
        model=ModelConfig(
            backbone="sasrec" if model == "genrec_sasrec" else "hstu",
            layers=constants["layers"],
            heads=constants["heads"],
            dim=constants["dim"],
            head_dim=constants["head_dim"],
            dropout=0.0,
            relative_bias="position_time" if model.endswith("position_time") else "none",
            repeat_head=False,
            **({"ffn_dim": constants["ffn_dim"]} if "ffn_dim" in constants else {}),
        ),
        method=MethodConfig(name="full", exact_entries=0),
        loss=LossConfig(
            negatives=constants.get("negatives", 1),
            sharing="shared" if shared else "per_position",
            temperature=0.05,
        ),
        compute=ComputeConfig(attention=attention),
    )


def parameters_of(method: Any, fixture: Fixture, check_shapes: bool = True) -> Any:
    """The stored weights as the method's parameters."""
    layers, weights = fixture.constants["layers"], fixture.weights

    def stack(name: str) -> np.ndarray:
        return np.stack([weights[f"layers/{i}/{name}"] for i in range(layers)])

    # This project multiplies item embeddings by sqrt(dim); here that is a factor of 1 or 1 / 4.
    item_scale = fixture.constants["embedding_scale"] / fixture.constants["dim"] ** 0.5
    params = {
        "embedding/item_embedding": weights["item_embedding"] * np.float32(item_scale),
        "embedding/position_embedding": weights["position_embedding"],
    }
    prefix = "layers/0/"
    for name in (key.removeprefix(prefix) for key in weights if key.startswith(prefix)):
        params[f"backbone/layers/{name}"] = stack(name)
    position_bias = params.get("backbone/layers/position_bias")
    if position_bias is not None:
        # One distance more than a window has, and no slots: neither is used.
        padded = np.pad(position_bias, ((0, 0), (0, 1)))
        params["backbone/layers/position_bias"] = padded
        slot_ids = 2 * method.config.method.slots
        params["backbone/layers/slot_bias"] = np.zeros((layers, slot_ids), np.float32)
    params = traverse_util.unflatten_dict(params, sep="/")
    if check_shapes:
        shapes = jax.eval_shape(method.init, jax.random.key(0))
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    return params


def build(model: str, scale: str, attention: str = "auto"):
    fixture = load(model, scale)
    method = make_method(config_of(model, fixture, attention), fixture.constants["num_items"])
    return fixture, method, parameters_of(method, fixture)


def read_all(fixture: Fixture, method: Any, params: Any) -> jax.Array:
    """Output vectors [T, D] at the valid positions, from one causal pass."""
    inputs = fixture.inputs
    events = Events(inputs["ids"], inputs.get("times"))
    state = method.init_state(params, len(inputs["ids"]))
    arguments = (params, state, events, fixture.valid, inputs.get("request_times"))
    return jax.jit(method.read_all)(*arguments).vectors[fixture.valid]


@pytest.mark.parametrize(
    ("scale", "attention"),
    [("init", "auto"), ("large", "auto"), ("large", "dense"), ("large", "pallas")],
)
@pytest.mark.parametrize("model", CAUSAL)
def test_outputs_and_logits(model, scale, attention):
    fixture, method, params = build(model, scale, attention)
    vectors = read_all(fixture, method, params)
    units = losses.to_queries(LossConfig(temperature=1.0), vectors)
    logits = method.score(params, Readout(vectors, None))[:, 1:]
    found = {"vectors": vectors, "unit_vectors": units, "logits": logits}
    for name, value in found.items():
        tolerance = TOLERANCES[scale][name]
        np.testing.assert_allclose(
            value, fixture.outputs[name], rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("scale", TOLERANCES)
@pytest.mark.parametrize("model", CAUSAL)
def test_reading_gives_the_output_after_the_last_event(model, scale):
    """Serving: a request time, and no next event."""
    fixture, method, params = build(model, scale)
    inputs = fixture.inputs
    events = Events(inputs["ids"], inputs.get("times"))
    state = method.init_state(params, len(inputs["ids"]))
    arguments = (params, state, events, fixture.valid, inputs.get("request_times"))
    found = jax.jit(method.read)(*arguments).vectors
    last = np.cumsum(inputs["lengths"]) - 1
    tolerance = TOLERANCES[scale]["vectors"]
    np.testing.assert_allclose(found, fixture.outputs["vectors"][last], rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", TOLERANCES)
@pytest.mark.parametrize("model", CAUSAL)
def test_training_loss(model, scale, monkeypatch):
    """Sampled softmax with the stored negatives: the mean over the valid positions."""
    fixture, method, params = build(model, scale)
    inputs, valid = fixture.inputs, fixture.valid
    rows = np.arange(len(valid))

    def append(values: np.ndarray, last: np.ndarray) -> np.ndarray:
        """[B, L + 1]: the held-out target after the last event."""
        longer = np.pad(values, ((0, 0), (0, 1)))
        longer[rows, inputs["lengths"]] = last
        return longer

    held_out = inputs["target_ids"][rows, inputs["lengths"] - 1]
    batch = {"ids": append(inputs["ids"], held_out), "index": rows.astype(np.int32)}
    np.testing.assert_array_equal(batch["ids"][:, 1:] * valid, inputs["target_ids"])
    if "times" in inputs:
        batch["times"] = append(inputs["times"], inputs["request_times"])

    negatives = inputs["negative_ids"]
    if negatives.ndim == 2:  # of each valid position; those of padding do not count
        negatives = np.ones((*valid.shape, negatives.shape[1]), np.int32)
        negatives[valid] = inputs["negative_ids"]
        negatives = negatives.reshape(-1, negatives.shape[2])

    def stored_negatives(*_: Any) -> jax.Array:
        return jnp.asarray(negatives)

    monkeypatch.setattr(losses, "sample_negatives", stored_negatives)
    terms = jax.jit(lambda p, b: method.loss(p, b, None))(params, batch)
    total, weight = terms["ar"]
    assert float(weight) == valid.sum()
    tolerance = TOLERANCES[scale]["loss"]
    np.testing.assert_allclose(total / weight, fixture.outputs["loss"], rtol=0, atol=tolerance)


def build_masked(scale: str, form: str, attention: str = "auto"):
    """PerSRec's masked pass: as method `persrec`, or as `kv_mask` with its token mask."""
    fixture = load(MASKED, scale)
    constants, weights = fixture.constants, fixture.weights
    tokens, segments = constants["tokens"], constants["segments"]
    config = config_of(MASKED, fixture, attention)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, score_norm=constants["N"]),
        method=MethodConfig(
            name="persrec" if form == "persrec" else "kv_mask",
            memory="append",
            slots=tokens,
            exact_entries=0,
        ),
    )
    method = make_method(config, constants["num_items"])
    positions, queries = weights["position_embedding"], weights["memory_tokens"]
    if form == "persrec":  # the fixture's segments share their tokens and their positions
        rows = np.concatenate([positions, np.zeros((tokens, constants["dim"]), np.float32)])
        positions, queries = np.tile(rows, (segments, 1)), np.tile(queries, (segments, 1))
    else:
        memory = dataclasses.replace(method.memory, causal_tokens=form == "causal tokens")
        method = dataclasses.replace(method, memory=memory)
    shared = {**weights, "position_embedding": positions}
    params = parameters_of(method, fixture._replace(weights=shared), check_shapes=False)
    params["memory"] = {"query_embedding": queries}
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    return fixture, method, params


def masked_vectors(fixture: Fixture, method: Any, params: Any) -> jax.Array:
    """Output vectors [T, D] of the training pass."""
    ids = np.pad(fixture.inputs["ids"], ((0, 0), (0, 1)))
    batch = {"ids": ids, "index": np.arange(len(ids), dtype=np.int32)}
    windows = cut_windows(batch, method.config.data, None).windows

    def run(params: Any) -> jax.Array:
        return kv_mask.masked_pass(method.memory, params, windows, batch["index"], None)

    outputs = jax.jit(run)(params).reshape(*fixture.inputs["ids"].shape, -1)
    return outputs[fixture.valid]


@pytest.mark.parametrize("form", ["persrec", "causal tokens"])
@pytest.mark.parametrize(
    ("scale", "attention"),
    [("init", "auto"), ("large", "auto"), ("large", "dense"), ("large", "pallas")],
)
def test_masked_pass(scale, attention, form):
    fixture, method, params = build_masked(scale, form, attention)
    vectors = masked_vectors(fixture, method, params)
    units = losses.to_queries(LossConfig(temperature=1.0), vectors)
    logits = method.score(params, Readout(vectors, None))[:, 1:]
    found = {"vectors": vectors, "unit_vectors": units, "logits": logits}
    for name, value in found.items():
        tolerance = TOLERANCES[scale][name]
        np.testing.assert_allclose(
            value, fixture.outputs[name], rtol=0, atol=tolerance, err_msg=name
        )


def test_masked_pass_at_initial_scale_to_1e_6():
    fixture, method, params = build_masked("init", "persrec")
    vectors = masked_vectors(fixture, method, params)
    np.testing.assert_allclose(vectors, fixture.outputs["vectors"], rtol=0, atol=1e-6)


def test_masked_pass_with_whole_groups_is_another():
    """What tables use: a token sees its whole group."""
    fixture, method, params = build_masked("large", "whole groups")
    vectors = masked_vectors(fixture, method, params)
    assert np.abs(vectors - fixture.outputs["vectors"]).max() > 1


@pytest.mark.parametrize("form", ["persrec", "causal tokens"])
def test_serving_the_masked_pass_segment_by_segment(form):
    """Updates fold three segments; the read after them equals the peer's last output of a row."""
    fixture, method, params = build_masked("large", form)
    size, last = fixture.constants["segment"], np.cumsum(fixture.inputs["lengths"]) - 1
    for row, length in enumerate(fixture.inputs["lengths"]):
        ids = fixture.inputs["ids"][row : row + 1]
        state = method.init_state(params, 1)
        folded = size * ((length - 1) // size)
        for first in range(0, folded, size):
            events = Events(ids[:, first : first + size])
            state = jax.jit(method.update)(params, state, events, np.ones((1, size), bool))
        rest = np.pad(ids[:, folded:length], ((0, 0), (0, size - (length - folded))))
        valid = np.arange(size)[None] < length - folded
        found = jax.jit(method.read)(params, state, Events(rest), valid).vectors
        expected = fixture.outputs["vectors"][last[row]]
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=TOLERANCES["large"]["vectors"])
        if length - folded > 1:  # the same from a session that takes the last event
            before = valid & (np.arange(size)[None] < length - folded - 1)
            session, _ = method.open_session(params, state, Events(rest * before), before)
            _, stepped = method.step_session(params, session, Events(ids[:, length - 1 : length]))
            np.testing.assert_allclose(stepped.vectors, found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", ["ml1m_sasrec", "ml1m_hstu", "ml1m_hstu_large"])
def test_presets_of_peers_have_nothing_beside_the_dot_product(preset):
    config = load_preset(preset)
    assert config.model.use_times is False and not config.model.repeat_head
    assert config.method.exact_entries == 0


@pytest.mark.parametrize("preset", ["ml1m_hstu", "ml1m_hstu_large"])
def test_presets_of_peers_divide_by_their_length(preset):
    """200 events, 10 outputs, and 1."""
    method = make_method(load_preset(preset), 10)
    assert method.network.backbone.spec.score_norm == 211


@pytest.mark.parametrize(
    ("preset", "name", "deviation"),
    [
        ("ml1m_sasrec", "backbone/layers/query/kernel", 0.142),
        ("ml1m_sasrec", "backbone/layers/key/kernel", 0.142),
        ("ml1m_sasrec", "backbone/layers/value/kernel", 0.142),
        ("ml1m_sasrec", "backbone/layers/ffn_in/bias", 0),
        ("ml1m_hstu", "embedding/position_embedding", 0.124),
        ("ml1m_hstu", "backbone/layers/out/bias", 0),
    ],
)
def test_presets_of_peers_state_how_they_start(preset, name, deviation):
    """Initial values differ from the peers' on purpose, and the docstrings say how."""
    params = make_method(load_preset(preset), 10).init(jax.random.key(0))
    found = np.asarray(traverse_util.flatten_dict(params, sep="/")[name]).std()
    np.testing.assert_allclose(found, deviation, rtol=0.02)
    docstring = " ".join(
        (importlib.import_module(f"launch.configs.{preset}").__doc__ or "").split()
    )
    stated = f"standard deviation of {deviation:.3f}".replace("0.", ".") if deviation else "biases"
    assert stated in docstring


def test_the_masked_fixture_has_the_mask_of_its_description():
    """Segments S and groups Q of memory tokens, in the order S Q S Q S Q S."""
    fixture = load(MASKED, "init")
    segment, group = "SSSSS", "QQQ"
    text = f"{segment}{group}{segment}{group}{segment}{group}{segment}"
    is_token = np.array([c == "Q" for c in text], np.int32)
    np.testing.assert_array_equal(fixture.inputs["is_token"], is_token)
    number = np.arange(29) // 8  # of the segment; a group belongs to the segment before it
    causal = np.tril(np.ones((29, 29), int))
    visible = causal * (is_token[None] | (number[:, None] == number[None]))
    np.testing.assert_array_equal(fixture.inputs["mask"], visible)
