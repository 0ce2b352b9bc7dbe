"""What only the first segment shows must reach the last one through the memory, in every family."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.methods.registry import make_method
from tests.helpers.methods import fit, served_loss

USERS, S, K = 8, 2, 3


def first_item_returns():
    """Ids 1 .. 8 tell the users apart; all else is common to them but the last target, the first id.

    Segments: [u 9] [10 11] [12 13], then u again. Without memory it costs log 8 = 2.08.
    """
    user = np.arange(1, USERS + 1)[:, None]
    common = np.broadcast_to(np.arange(9, 14), (USERS, 5))
    ids = np.concatenate([user, common, user], axis=1).astype(np.int32)
    return {"ids": ids, "index": np.arange(USERS, dtype=np.int32)}


@pytest.mark.parametrize(
    ("name", "memory", "layers", "carries"),
    [
        pytest.param("rec2pm", "overwrite", 2, True, marks=pytest.mark.slow),
        pytest.param("tok_serial", "overwrite", 2, True, marks=pytest.mark.slow),
        pytest.param("tok_serial", "append", 2, True, marks=pytest.mark.slow),
        ("kv_mask", "append", 2, True),
        pytest.param("kv_mask", "overwrite", 3, True, marks=pytest.mark.slow),
        pytest.param("kv_mask", "overwrite", 2, False, marks=pytest.mark.slow),
        pytest.param("recent", "overwrite", 2, False, marks=pytest.mark.slow),
        pytest.param("recent", "exact", 2, True, marks=pytest.mark.slow),
    ],
)
def test_the_first_segment_is_remembered(name, memory, layers, carries):
    """Overwritten keys and values reach back layers - 1 segments: two layers are not enough.

    The exact memory alone carries it as well; the preference memory is tested without one.
    """
    exact = 4 if memory == "exact" else 0
    kind = "overwrite" if exact else memory
    config = Config(
        data=DataConfig(segment=S, segments=K),
        model=ModelConfig(layers=layers, dim=32, dropout=0.0),
        method=MethodConfig(name=name, memory=kind, slots=2, max_groups=2, exact_entries=exact),
    )
    method, batch = make_method(config, 13), first_item_returns()
    *_, params = fit(method, batch, steps=200, learning_rate=3e-3)
    after = served_loss(method, params, batch)
    positions, forgotten = S * K, np.log(USERS)
    if carries:
        assert after < 0.1 * forgotten / positions
    else:
        assert after > 0.9 * forgotten / positions
