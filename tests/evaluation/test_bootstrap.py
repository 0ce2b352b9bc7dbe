"""The bootstrap against a loop, and what any such interval must satisfy."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.evaluation.bootstrap import bootstrap, paired_bootstrap


def test_matches_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    a, b = rng.random(30), 0.1 + rng.random(30)
    draws = np.random.default_rng(7).integers(0, 30, (200, 30))
    means = [a[draw].mean() for draw in draws]
    differences = [a[draw].mean() - b[draw].mean() for draw in draws]
    ratios = [a[draw].mean() / b[draw].mean() for draw in draws]

    single = bootstrap(a, resamples=200, seed=7)
    paired = paired_bootstrap(a, b, resamples=200, seed=7)
    np.testing.assert_allclose(single, [a.mean(), *np.percentile(means, [2.5, 97.5])])
    np.testing.assert_allclose(
        paired.difference, [a.mean() - b.mean(), *np.percentile(differences, [2.5, 97.5])]
    )
    np.testing.assert_allclose(
        paired.ratio, [a.mean() / b.mean(), *np.percentile(ratios, [2.5, 97.5])]
    )


def test_pairing_removes_what_users_have_in_common():
    rng = np.random.default_rng(2)
    users = rng.random(400)
    better = users + 0.02 + 0.001 * rng.random(400)
    paired = paired_bootstrap(better, users).difference
    assert paired.low > 0.0199
    shuffled = paired_bootstrap(rng.permutation(better), users).difference
    assert shuffled.low < 0 < shuffled.high


def test_identical_samples_have_no_difference():
    a = np.random.default_rng(3).random(50)
    paired = paired_bootstrap(a, a)
    assert paired.difference == (0.0, 0.0, 0.0)
    assert paired.ratio == (1.0, 1.0, 1.0)


def test_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(4).normal(size=2000)
    interval = bootstrap(values)
    expected = 2 * 1.96 * values.std() / np.sqrt(2000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_seed_decides():
    values = np.random.default_rng(5).random(40)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [[1.0, 2.0]]])
def test_bad_samples_are_refused(values):
    with pytest.raises(ValueError, match="one finite value per user"):
        bootstrap(np.array(values))


def test_pairs_must_match_and_the_ratio_must_exist():
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="ratio is undefined"):
        paired_bootstrap(np.ones(3), np.zeros(3))
