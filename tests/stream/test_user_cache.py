"""The cache of users against one dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.stream.users.user_cache import UserCache


@given(st.lists(st.one_of(st.integers(0, 300), st.none())))
def test_the_cache_equals_a_dictionary(turns):
    """A number adds a user, None removes one."""
    cache, expected = UserCache(), {}
    for turn in turns:
        if turn is None and expected:
            name, user = cache.pop_oldest()
            assert expected.pop(name) is user
        elif turn is not None and f"u{turn}" not in expected:
            expected[f"u{turn}"] = MutableUser(PendingEvents(1))
            cache.add(f"u{turn}", expected[f"u{turn}"])
        assert len(cache) == len(expected)
    found = cache.find([*expected, "other"])
    assert found == expected and all(found[name] is user for name, user in expected.items())


def test_every_user_is_removed_once_and_early_ones_first():
    cache = UserCache()
    for n in range(6400):
        cache.add(f"u{n}", MutableUser(PendingEvents(1)))
    left = [int(cache.pop_oldest()[0][1:]) for _ in range(6400)]
    assert sorted(left) == list(range(6400))
    assert max(left[:640]) < 3200  # the first tenth removed is among the first half added
    with pytest.raises(KeyError, match="the cache is empty"):
        cache.pop_oldest()
