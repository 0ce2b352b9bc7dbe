"""On an NVIDIA GPU: cuDNN equals dense attention, losses and gradients equal the CPU's."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from launch.benchmarks import settings
from rec2pm_jax.config import ComputeConfig
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.attention import ScoreNormalizer
from tests.helpers.attention import inputs, small_layouts, with_gradients


@pytest.fixture(autouse=True)
def _on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU and JAX_PLATFORMS=cuda,cpu")
    with jax.default_matmul_precision("highest"):
        yield


def assert_close(got, want, tolerance):
    def check(a, b):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))

    jax.tree.map(check, got, want)


@pytest.mark.parametrize("n, window", [(15, 5), (300, 60)])
@pytest.mark.parametrize("name", ["causal", "update", "reference", "masked"])
def test_cudnn_equals_dense(name, n, window):
    """Odd lengths, users without events, rows that see nothing; as near as bfloat16 rounds."""
    layout = small_layouts(n=n, window=window)[name]()
    arrays = inputs(layout, 2, 8, dtype="bfloat16")
    got, want = (
        with_gradients(ComputeConfig(kind), layout, ScoreNormalizer(), False, *arrays)
        for kind in ("cudnn", "dense")
    )
    assert_close((got[0][1], got[1][:3]), (want[0][1], want[1][:3]), 0.03)


@pytest.mark.parametrize("method", settings.METHODS)
@pytest.mark.parametrize(
    "model", [settings.SMOKE_SASREC, settings.SMOKE_HSTU], ids=["sasrec", "hstu"]
)
def test_losses_and_gradients_equal_the_cpu(model, method):
    """Dropout and negatives included: random numbers do not depend on the device."""
    config = settings.make_config(method, model, smoke=True)
    made = make_method(config, settings.SMOKE_ITEMS)
    batch = settings.random_batch(config, settings.SMOKE_ITEMS)

    def objective(params, batch):
        terms = made.loss(params, batch, jax.random.key(1))
        return sum(total for total, _ in terms.values())

    cpu, gpu = jax.devices("cpu")[0], jax.devices()[0]
    with jax.default_device(cpu):
        params = made.init(jax.random.key(0))
    found = [
        jax.device_get(jax.jit(jax.value_and_grad(objective))(*jax.device_put((params, batch), on)))
        for on in (gpu, cpu)
    ]
    assert_close(*found, 1e-4)
