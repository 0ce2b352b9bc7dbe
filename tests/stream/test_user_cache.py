"""Users held by a process: a dictionary in parts, against one dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.user_cache import UserCache


@given(st.lists(st.one_of(st.integers(0, 300), st.none())))
def test_it_holds_what_a_dictionary_would(turns):
    """A number is a user who comes, None lets one go."""
    held, expected = UserCache(), {}
    for turn in turns:
        if turn is None and expected:
            name, live = held.pop()
            assert expected.pop(name) is live
        elif turn is not None and f"u{turn}" not in expected:
            expected[f"u{turn}"] = MutableUser()
            held.add(f"u{turn}", expected[f"u{turn}"])
        assert len(held) == len(expected)
    for name, live in expected.items():
        assert name in held and held[name] is held.get(name) is live
    assert "nobody" not in held and held.get("nobody") is None


def test_nobody_is_let_go_twice_and_the_first_of_a_part_goes_first():
    held = UserCache()
    for n in range(6400):
        held.add(f"u{n}", MutableUser())
    left = [int(held.pop()[0][1:]) for _ in range(6400)]
    assert sorted(left) == list(range(6400))
    assert max(left[:640]) < 3200  # the first tenth to go were among the first half to come
    with pytest.raises(KeyError, match="nobody is held"):
        held.pop()
