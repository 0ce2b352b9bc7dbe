"""Anatomy: shares of attention add up; neighbours and items are found."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.anatomy import (
    attention_shares,
    dominant_groups,
    nearest_items,
    neighbour_agreement,
)
from rec2pm_jax.evaluation.histories import Histories, load_histories
from rec2pm_jax.evaluation.targets import make_targets, plan_rows
from rec2pm_jax.methods.registry import make_method
from tests.helpers.evaluate_fakes import FakeDataset
from tests.helpers.methods import large_parameters

LENGTHS = [70, 41, 90]
SHORT = DataConfig(segment=5, segments=4)


def looked_at(name, backbone="sasrec", lengths=LENGTHS, data=SHORT):
    config = Config(
        data=data,
        model=ModelConfig(backbone=backbone, dim=8, layers=2, heads=2),
        method=MethodConfig(name=name, slots=3),
    )
    method = make_method(config, 12)
    histories = load_histories(FakeDataset(lengths, times=False), np.arange(len(lengths)))
    rows = plan_rows(make_targets(histories, split_rule("last_10"), "test"), method, None)
    return attention_shares(method, large_parameters(method), histories, rows)


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_shares_add_up_and_every_slot_looks_at_every_segment(backbone):
    found = looked_at("rec2pm", backbone)
    update, read, one_pass = (np.array(found[name]) for name in ("update", "read", "one_pass"))
    assert update.shape == (2, 3, 3) and read.shape == (2, 2) and one_pass.shape == (2, 3, 4)
    np.testing.assert_allclose(update.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(read.sum(axis=-1), 1, rtol=1e-5)
    assert (update > 0).all() and (read > 0).all() and (one_pass > 0).all()
    assert (one_pass.sum(axis=-1) < 1).all()  # the rest is the queries themselves


def test_long_segments_are_passes_of_several_blocks():
    found = looked_at("rec2pm", lengths=[420, 300], data=DataConfig(segment=140, segments=1))
    np.testing.assert_allclose(np.sum(found["update"], axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(found["read"], axis=-1), 1, rtol=1e-5)


def test_methods_differ_in_what_can_be_looked_at():
    assert looked_at("tok_serial")["one_pass"] is None
    with pytest.raises(UserError, match="kv_mask keeps no memory tokens"):
        looked_at("kv_mask")
    with pytest.raises(UserError, match="No user has 4 archived segments"):
        looked_at("rec2pm", lengths=[21, 21])


def test_nearest_items_are_those_that_set_a_slot_apart():
    table = np.vstack([np.zeros(4), np.eye(4)])
    common = np.array([9.0, 0, 0, 0])
    peculiar = np.array([[[0, 5, 1, 0]], [[0, 0, 0, 3]], [[0, 0, 0, 0]]])
    nearest = nearest_items(common + peculiar, table, top=2)
    assert nearest[0, 0].tolist() == [2, 3] and nearest[1, 0, 0] == 4
    assert 0 not in nearest


def test_dominant_group_is_the_one_above_average():
    """Both take group 0 most; the second takes more of group 1 than the first does."""
    groups = np.array([2, 0, 1, 2])  # of items 0 (padding), 1, 2, 3
    ids = np.array([1, 1, 1, 3, 2, 1, 1, 2, 3, 3, 2, 2])
    histories = Histories(np.arange(2), np.array([0, 5, 12]), ids, None, None)
    assert dominant_groups(groups, histories, np.array([0, 1]), np.array([4, 5]), 2).tolist() == [
        0,
        1,
    ]


def test_neighbours_of_two_clusters_agree():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    apart = np.where(labels[:, None], 3.0, -3.0) + rng.normal(size=(40, 5))
    found = neighbour_agreement(apart, labels)
    assert found == {"same": 1.0, "chance": pytest.approx(19 / 39)}
    mixed = neighbour_agreement(rng.normal(size=(40, 5)), labels)
    assert mixed["same"] < 0.7
