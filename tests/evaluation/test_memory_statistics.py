"""Statistics of memories on inputs whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_statistics import (
    archived_frequencies,
    effective_rank,
    linear_probe,
    slot_cosine,
)
from rec2pm_jax.evaluation.targets import Rows


def test_frequencies_are_of_the_folded_segments_alone():
    ids = np.array([1, 1, 2, 3, 9, 2, 2, 2, 4, 9], np.int32)
    histories = Histories(np.array([0, 1]), np.array([0, 5, 10]), ids, None, None)
    one = np.array([0, 1])
    rows = Rows(one, np.array([2, 1]), np.array([0, 1]), one, one, one, one)
    found = archived_frequencies(histories, rows, num_items=9, segment=2)
    # User 0 folds 1 1 2 3; user 1 folds segment 1 alone, which is 2 4.
    assert found.shape == (2, 9)
    np.testing.assert_allclose(np.square(found[0, :3]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(np.square(found[1]), [0, 0.5, 0, 0.5, 0, 0, 0, 0, 0])


def test_a_linear_image_is_explained_and_noise_is_not():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(600, 6))
    image = wanted @ rng.normal(size=(6, 8))
    assert linear_probe(image, wanted) > 0.98
    half = np.concatenate([image[:, :0], wanted[:, :3]], axis=1)  # three of six columns
    assert linear_probe(half, wanted) == pytest.approx(0.5, abs=0.05)
    assert linear_probe(rng.normal(size=(600, 8)), wanted) < 0.02
    assert linear_probe(np.ones((600, 8)), wanted) == pytest.approx(0, abs=0.01)
    assert linear_probe(image[:3], wanted[:3]) is None


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(40, 3)) - 0)
    q -= q.mean(axis=0)
    q, _ = np.linalg.qr(q)  # three centred orthonormal columns
    assert effective_rank(q) == pytest.approx(3)
    assert effective_rank(q[:, :1]) == pytest.approx(1)
    assert effective_rank(np.ones((10, 4)) * 0.3) == 0


def test_slot_cosine_of_known_slots():
    same = np.ones((5, 3, 4))
    assert slot_cosine(same) == pytest.approx(1)
    assert slot_cosine(np.tile(np.eye(3), (5, 1, 1))) == pytest.approx(0)
    assert slot_cosine(np.stack([same[:, 0], -same[:, 0]], axis=1)) == pytest.approx(-1)
