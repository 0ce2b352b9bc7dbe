"""Training batches: crops, epochs, processes and restored iterators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.pipeline import select_training_users, train_iterator
from rec2pm_jax.errors import UserError
from tests.helpers.data import make_dataset

DATA = DataConfig(segment=3, segments=2, protocol="leave_one_out")  # T + 1 = 7
LENGTHS = [4, 40, 3, 12, 9, 2, 25, 7]  # training events: 2, 38, 1, 10, 7, 0, 23, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("pipeline"), LENGTHS, types=True)


def rows_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.smoke
def test_shapes_and_dtypes(dataset):
    batch = next(train_iterator(dataset, DATA, 4, seed=0))
    assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
        "ids": ((4, 7), "int32"),
        "times": ((4, 7), "int32"),
        "types": ((4, 7), "int32"),
        "index": ((4,), "int32"),
    }


def test_users_without_two_training_events_are_counted(dataset):
    selection = select_training_users(dataset, DATA)
    assert selection.users.tolist() == [0, 1, 3, 4, 6, 7]
    assert selection.train_ends.tolist() == [2, 38, 10, 7, 23, 5]
    assert selection.skipped == 2


def test_rows_are_contiguous_crops_of_training_events(dataset):
    iterator = train_iterator(dataset, DATA, 4, seed=0)
    ends = dict(zip(*select_training_users(dataset, DATA)[:2], strict=True))
    starts = {user: set() for user in ends}
    for _ in range(150):
        batch = next(iterator)
        for ids, times, types in zip(batch["ids"], batch["times"], batch["types"], strict=True):
            names = [dataset.items.raw_ids[i] for i in ids if i]
            taken = len(names)
            user, start = map(int, names[0].split("-"))
            assert names == [f"{user}-{start + e}" for e in range(taken)]
            assert taken == min(ends[user], 7)
            assert start + taken <= ends[user]
            expected = 100 * user + start + np.minimum(np.arange(7), taken - 1)
            np.testing.assert_array_equal(times, expected)
            np.testing.assert_array_equal(ids[taken:], 0)
            np.testing.assert_array_equal(types[taken:], 0)
            np.testing.assert_array_equal(types[:taken], 1 + expected[:taken] % 2)
            starts[user].add(start)
    assert starts[3] == {0, 1, 2, 3}  # every start from 0 to 10 - 7 occurs
    assert starts[4] == {0}


def test_each_epoch_visits_every_user_in_a_new_order(dataset):
    iterator = train_iterator(dataset, DATA, 6, seed=0)
    epochs = []
    for _ in range(4):
        ids = next(iterator)["ids"][:, 0]
        epochs.append([int(dataset.items.raw_ids[i].split("-")[0]) for i in ids])
    assert all(sorted(epoch) == [0, 1, 3, 4, 6, 7] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), processes=st.sampled_from([2, 3, 4]))
def test_batches_of_processes_interleave_to_the_global_batch(dataset, seed, processes):
    whole = train_iterator(dataset, DATA, 12, seed)
    parts = [train_iterator(dataset, DATA, 12, seed, p, processes) for p in range(processes)]
    for step in range(3):
        expected = next(whole)
        np.testing.assert_array_equal(expected["index"], np.arange(12 * step, 12 * step + 12))
        shards = [next(part) for part in parts]
        interleaved = {
            name: np.stack([shard[name] for shard in shards], axis=1).reshape(value.shape)
            for name, value in expected.items()
        }
        rows_equal(interleaved, expected)


@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_a_restored_iterator_continues_identically(dataset, consumed):
    iterator = train_iterator(dataset, DATA, 4, seed=7)
    for _ in range(consumed):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]
    restored = train_iterator(dataset, DATA, 4, seed=7)
    restored.set_state(state)
    for batch in expected:
        rows_equal(next(restored), batch)


def test_seeds_differ(dataset):
    first, second = (next(train_iterator(dataset, DATA, 6, seed)) for seed in (0, 1))
    assert not np.array_equal(first["ids"], second["ids"])


def test_a_window_longer_than_any_history_says_what_to_lower(dataset):
    with pytest.raises(UserError, match="has 40; lower data.segments to at most 4"):
        select_training_users(dataset, DataConfig(segment=9, segments=5))


def test_no_user_to_train_on(tmp_path):
    with pytest.raises(UserError, match="no user has 2 training events"):
        select_training_users(make_dataset(tmp_path, [3, 2]), DATA)


def test_processes_must_share_the_batch(dataset):
    with pytest.raises(UserError, match="batch_size=5"):
        train_iterator(dataset, DATA, 5, 0, process_index=0, process_count=2)
