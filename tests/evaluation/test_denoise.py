"""Noise: where it falls, that it is nested, and that it reaches what is read but no target."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.denoise import Noise
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import make_targets
from tests.helpers.evaluate_fakes import PARAMS, FakeDataset, FakeMethod

LENGTHS = [70, 21, 400]
DATA = DataConfig(segment=5, segments=3)
COUNTS = np.array([0, 0, 0, 1, 3, *[0] * 8])


@pytest.fixture
def histories():
    return load_histories(FakeDataset(LENGTHS), np.arange(3))


@pytest.fixture
def targets(histories):
    return make_targets(histories, split_rule("last_10"), "test")


def changed(noise, histories, targets):
    return noise(histories, targets).ids != histories.ids


def test_only_archived_events_are_replaced_and_noise_is_nested(histories, targets):
    masks = [
        changed(Noise("random", f, DATA, COUNTS), histories, targets) for f in (0, 0.3, 0.6, 1)
    ]
    assert not masks[0].any()
    for less, more in zip(masks, masks[1:], strict=False):
        assert (more | ~less).all() and more.sum() > less.sum()
    # First targets at 60, 11 and 390: archived are 55, 10 and 385 events.
    everything = masks[-1]
    ends = [55, 70 + 10, 91 + 385]
    assert not everything[55:70].any() and not everything[80:91].any()
    assert not everything[ends[2] :].any()
    # One in twelve draws is the item that was there.
    assert everything[91 : ends[2]].mean() == pytest.approx(11 / 12, abs=0.06)
    assert masks[1][91 : ends[2]].mean() == pytest.approx(0.3 * 11 / 12, abs=0.06)


def test_popular_noise_is_drawn_by_frequency(histories, targets):
    noisy = Noise("popular", 1.0, DATA, COUNTS)(histories, targets).ids[91 : 91 + 385]
    assert set(noisy) == {3, 4}
    assert (noisy == 4).mean() == pytest.approx(0.75, abs=0.07)


def test_noise_depends_on_the_user_and_not_on_who_else_is_evaluated(histories, targets):
    noise = Noise("random", 0.5, DATA, COUNTS)
    whole = noise(histories, targets).ids[91:]
    alone = load_histories(FakeDataset(LENGTHS), np.array([2]))
    own = make_targets(alone, split_rule("last_10"), "test")
    np.testing.assert_array_equal(noise(alone, own).ids, whole)
    assert (Noise("random", 0.5, DATA, COUNTS, seed=1)(histories, targets).ids[91:] != whole).any()


def test_full_noise_changes_ranks_but_no_target():
    config = Config(
        data=DATA,
        model=ModelConfig(dim=8, layers=1, heads=2),
        method=MethodConfig(slots=2, max_groups=3),
    )
    method, dataset = FakeMethod(config, 12), FakeDataset(LENGTHS)
    clean, noisy, none = (
        evaluate(method, PARAMS, dataset, EvalSpec("test", corrupt=corrupt))
        for corrupt in (None, Noise("random", 1.0, DATA, COUNTS), Noise("random", 0, DATA, COUNTS))
    )
    np.testing.assert_array_equal(clean.rank, none.rank)
    np.testing.assert_array_equal(clean.position, noisy.position)
    assert (clean.rank != noisy.rank).any()


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="choose one of random, popular"):
        Noise("rare", 0.1, DATA, COUNTS)
    with pytest.raises(UserError, match=r"in \[0, 1\], got 30"):
        Noise("random", 30, DATA, COUNTS)
