"""Masks of both passes as literal 0/1 matrices, and the places and times of their tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods import layout as layouts
from rec2pm_jax.methods.windows import UNKNOWN_TIME, query_times
from rec2pm_jax.nn.attention import causal_blocks, mask_of


def ints(*values):
    return jnp.array(values, jnp.int32)


def full_mask(layout, tokens, user=0):
    """The token x token matrix; keys outside a block are not seen."""
    matrix = np.full((tokens, tokens), -1)
    for block in layout.blocks:
        rows = matrix[block.row_start : block.row_stop]
        assert (rows == -1).all()  # blocks are disjoint
        rows[:] = 0
        mask = np.asarray(mask_of(block, layout.num_slots))
        keys = block.select_keys(np.arange(tokens)[None], layout.num_slots)[0]
        rows[:, keys] = mask[min(user, len(mask) - 1)]
    return matrix


def literal(text):
    rows = [line.replace("|", "").split() for line in text.strip().splitlines()]
    return np.array([[int(c) for c in "".join(row)] for row in rows])


def reference_layout(lengths, ends, slots=2, num_items=6, **options):
    """S = 2; items see all earlier items unless `item_window` says otherwise."""
    options = {"item_window": None, "num_items": num_items} | options
    return layouts.reference(ints(*lengths), ints(ends), layouts.Sizes(slots, 1, 2), **options)


def test_reference_pass():
    """3 segments of 2 events, C = 2: slots Q0 Q0 Q1 Q1 Q2 Q2 | events 0 .. 5."""
    layout = reference_layout([6, 3], [2, 4, 6])
    expected = """
        11 00 00 | 11 00 00
        11 00 00 | 11 00 00
        00 11 00 | 11 11 00
        00 11 00 | 11 11 00
        00 00 11 | 11 11 11
        00 00 11 | 11 11 11
        00 00 00 | 10 00 00
        00 00 00 | 11 00 00
        00 00 00 | 11 10 00
        00 00 00 | 11 11 00
        00 00 00 | 11 11 10
        00 00 00 | 11 11 11"""
    np.testing.assert_array_equal(full_mask(layout, 12), literal(expected))
    # The second user has 3 events: padding clips what queries see.
    np.testing.assert_array_equal(
        full_mask(layout, 12, user=1)[:6],
        literal("""
        11 00 00 | 11 00 00
        11 00 00 | 11 00 00
        00 11 00 | 11 10 00
        00 11 00 | 11 10 00
        00 00 11 | 11 10 00
        00 00 11 | 11 10 00"""),
    )


def test_items_of_the_reference_pass_may_see_a_window_of_segments():
    """Their own segment and the one before; queries see every item all the same."""
    layout = reference_layout([6], [2, 4, 6], slots=1, item_window=2)
    expected = """
        1 0 0 | 11 00 00
        0 1 0 | 11 11 00
        0 0 1 | 11 11 11
        0 0 0 | 10 00 00
        0 0 0 | 11 00 00
        0 0 0 | 11 10 00
        0 0 0 | 11 11 00
        0 0 0 | 00 11 10
        0 0 0 | 00 11 11"""
    np.testing.assert_array_equal(full_mask(layout, 9), literal(expected))


def test_windowed_causal_blocks_leave_out_what_no_row_sees():
    blocks = causal_blocks(12, 0, rows=2, segment=2, segments=2)
    assert [(b.item_start, b.key_stop) for b in blocks[:4]] == [(0, 2), (0, 4), (2, 6), (4, 8)]


def update_layout(groups, lengths, recent=1, **options):
    """S = 2, C = 2, append capacity 2: memory of two groups, Q Q | S + R - 1 events."""
    sizes = layouts.Sizes(slots=2, groups=options.pop("max_groups", 2), segment=2)
    options = dict(num_items=1 + recent, with_queries=True) | options
    return layouts.update(ints(*lengths), ints(*groups), sizes, **options)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (
            0,
            """
            00 00 00 | 00
            00 00 00 | 00
            00 00 00 | 00
            00 00 00 | 00
            00 00 11 | 11
            00 00 11 | 11
            00 00 00 | 10
            00 00 00 | 11""",
        ),
        (
            1,
            """
            00 11 00 | 00
            00 11 00 | 00
            00 11 00 | 00
            00 11 00 | 00
            00 11 11 | 11
            00 11 11 | 11
            00 11 00 | 10
            00 11 00 | 11""",
        ),
        (
            2,
            """
            11 11 00 | 00
            11 11 00 | 00
            11 11 00 | 00
            11 11 00 | 00
            11 11 11 | 11
            11 11 11 | 11
            11 11 00 | 10
            11 11 00 | 11""",
        ),
    ],
)
def test_update_pass(groups, expected):
    """Memory groups in use are the right ones; queries see memory, segment and themselves."""
    layout = update_layout([groups, 2], [2, 2])
    np.testing.assert_array_equal(full_mask(layout, 8), literal(expected))


def test_update_pass_keeps_a_second_recent_event_from_the_queries():
    """R = 2: windows of 3 events, of which queries see the segment's 2. Overwrite (G = 1)."""
    layout = update_layout([1], [3], recent=2, max_groups=1)
    expected = """
        11 00 | 000
        11 00 | 000
        11 11 | 110
        11 11 | 110
        11 00 | 100
        11 00 | 110
        11 00 | 111"""
    np.testing.assert_array_equal(full_mask(layout, 7), literal(expected))


def test_queries_of_a_short_segment_see_no_padding():
    layout = update_layout([0, 0, 0], [1, 0, 3], recent=2, max_groups=1)
    seen = [full_mask(layout, 7, user)[2:4].tolist() for user in range(3)]
    assert seen[0] == literal("00 11 | 100 \n 00 11 | 100").tolist()
    assert seen[1] == literal("00 11 | 000 \n 00 11 | 000").tolist()
    assert seen[2] == literal("00 11 | 110 \n 00 11 | 110").tolist()


def test_a_read_has_no_queries():
    layout = update_layout([1], [2], with_queries=False)
    expected = """
        00 11 | 00
        00 11 | 00
        00 11 | 00
        00 11 | 00
        00 11 | 10
        00 11 | 11"""
    np.testing.assert_array_equal(full_mask(layout, 6), literal(expected))


def masked_layout(lengths, max_groups, recent=1, rows=layouts.BLOCK_ROWS, **options):
    """S = 2, C = 2, W = S + R - 1; three windows in a block unless `rows` says otherwise."""
    sizes = layouts.Sizes(slots=2, groups=max_groups, segment=2, block_rows=rows)
    return layouts.masked(jnp.array(lengths, jnp.int32), sizes, window=1 + recent, **options)


# Slots Q0 Q0 Q1 Q1 Q2 Q2 | events of segments 0, 1, 2.
KV_MASK_OVERWRITE = """
    11 00 00 | 11 00 00
    11 00 00 | 11 00 00
    11 11 00 | 00 11 00
    11 11 00 | 00 11 00
    00 11 11 | 00 00 11
    00 11 11 | 00 00 11
    00 00 00 | 10 00 00
    00 00 00 | 11 00 00
    11 00 00 | 00 10 00
    11 00 00 | 00 11 00
    00 11 00 | 00 00 10
    00 11 00 | 00 00 11"""
KV_MASK_APPEND = """
    11 00 00 | 11 00 00
    11 00 00 | 11 00 00
    11 11 00 | 00 11 00
    11 11 00 | 00 11 00
    11 11 11 | 00 00 11
    11 11 11 | 00 00 11
    00 00 00 | 10 00 00
    00 00 00 | 11 00 00
    11 00 00 | 00 10 00
    11 00 00 | 00 11 00
    11 11 00 | 00 00 10
    11 11 00 | 00 00 11"""


@pytest.mark.parametrize("rows", [1, 4, 128])
@pytest.mark.parametrize(
    ("max_groups", "expected"), [(1, KV_MASK_OVERWRITE), (2, KV_MASK_APPEND), (9, KV_MASK_APPEND)]
)
def test_masked_pass(max_groups, expected, rows):
    """Earlier segments are seen through their query groups alone, whatever the blocks."""
    layout = masked_layout([[2, 2, 2]], max_groups, rows=rows)
    np.testing.assert_array_equal(full_mask(layout, 12), literal(expected))
    computed = [(b.row_stop - b.row_start) * (b.key_stop - b.item_start) for b in layout.blocks]
    assert sum(computed) == {1: 96, 4: 112, 128: 144}[rows]  # 6 slots and one window, two or all


def test_masked_pass_of_longer_windows_and_padding():
    """R = 2: windows of 3 events, of which queries see the segment's 2. One user, then one with 4."""
    layout = masked_layout([[3, 3], [3, 2]], 1, recent=2)
    expected = """
        11 00 | 110 000
        11 00 | 110 000
        11 11 | 000 110
        11 11 | 000 110
        00 00 | 100 000
        00 00 | 110 000
        00 00 | 111 000
        11 00 | 000 100
        11 00 | 000 110
        11 00 | 000 111"""
    np.testing.assert_array_equal(full_mask(layout, 10), literal(expected))
    padded = masked_layout([[3, 3], [2, 0], [1, 0]], 1, recent=2)
    for user, first in ((1, "110"), (2, "100")):
        queries = literal(f"11 00 | {first} 000 \n 11 11 | 000 000")
        np.testing.assert_array_equal(full_mask(padded, 10, user)[:4:2], queries)


def cached_layout(lengths, groups, sizes, **options):
    return layouts.without_memory_rows(layouts.update(lengths, groups, sizes, **options), sizes)


def test_kept_tokens_are_keys_but_no_rows():
    layout = cached_layout(
        ints(2, 2, 1), ints(0, 1, 2), layouts.Sizes(2, 2, 2), num_items=2, with_queries=True
    )
    (block,) = layout.blocks
    assert (block.row_start, block.row_stop, layout.num_slots) == (4, 8, 6)
    expected = [
        "00 00 11 | 11 \n 00 00 11 | 11 \n 00 00 00 | 10 \n 00 00 00 | 11",
        "00 11 11 | 11 \n 00 11 11 | 11 \n 00 11 00 | 10 \n 00 11 00 | 11",
        "11 11 11 | 10 \n 11 11 11 | 10 \n 11 11 00 | 10 \n 11 11 00 | 11",
    ]
    for user, rows in enumerate(expected):
        np.testing.assert_array_equal(full_mask(layout, 8, user)[4:], literal(rows))
    np.testing.assert_array_equal(layout.slot_ids, [2, 3] * 3)  # what they were when made
    np.testing.assert_array_equal(layout.place[0, 4:], [2, 2, 0, 1])


def test_causal_pass():
    layout = layouts.causal(3, None, None)
    np.testing.assert_array_equal(full_mask(layout, 3), literal("100 \n 110 \n 111"))


def test_places_and_slot_ids():
    """Queries stand where the next event would; slot c has bias row c in memory, C + c in Q."""
    update = update_layout([2], [2])
    np.testing.assert_array_equal(update.slot_ids, [0, 1, 0, 1, 2, 3])
    np.testing.assert_array_equal(update.place[0, 4:], [2, 2, 0, 1])
    reference = reference_layout([6], [2, 4, 6])
    np.testing.assert_array_equal(reference.slot_ids, [2, 3] * 3)
    np.testing.assert_array_equal(reference.place[0], [2, 2, 4, 4, 6, 6, 0, 1, 2, 3, 4, 5])


PAIRS = jnp.array([[10, 20, 30, 99], [10, 99, 0, 0]], jnp.int32)  # two windows of two events


def test_queries_ask_for_the_time_of_the_last_event_they_see():
    """Whatever stands in the padding."""
    times = ints([10, 20, 30], [10, 99, 5])
    options = dict(row_times=times + 1, key_times=times)
    update = update_layout([0, 0], [3, 1], recent=2, max_groups=1, **options)
    np.testing.assert_array_equal(
        update.row_times[:, 2:], [[20, 20, 11, 21, 31], [10, 10, 11, 100, 6]]
    )
    np.testing.assert_array_equal(update.key_times[:, 4:], times)
    reference = reference_layout([3, 1], [2, 4], slots=1, num_items=3, **options)
    np.testing.assert_array_equal(reference.row_times[:, :2], [[20, 30], [10, 10]])
    np.testing.assert_array_equal(reference.row_times[:, 2:], times + 1)
    masked = masked_layout([[2, 1], [1, 0]], 1, row_times=PAIRS + 1, key_times=PAIRS)
    np.testing.assert_array_equal(masked.row_times[:, ::2], [[20, 30, 11, 31], [10, 0, 11, 1]])
    np.testing.assert_array_equal(masked.key_times[:, 4:], PAIRS)
    np.testing.assert_array_equal(masked.place[0], [2] * 4 + [0, 1] * 2)


def test_query_times_are_the_next_events_and_the_request():
    times = ints([10, 20, 30], [10, 20, 0])
    lengths = ints(3, 2)
    asked, known = query_times(times, lengths, ints(99, 77))
    np.testing.assert_array_equal(asked[0], [20, 30, 99])
    np.testing.assert_array_equal(asked[1, :2], [20, 77])
    assert np.all(known)
    own, known = query_times(times, lengths, None)
    np.testing.assert_array_equal(own[0], [20, 30, 30])
    np.testing.assert_array_equal(own[1, :2], [20, 20])
    np.testing.assert_array_equal(known, [[True, True, False], [True, False, True]])
    some, known = query_times(times, lengths, ints(99, UNKNOWN_TIME))
    np.testing.assert_array_equal(some[0], [20, 30, 99])
    np.testing.assert_array_equal(some[1, :2], [20, 20])
    np.testing.assert_array_equal(known, [[True, True, True], [True, False, True]])
    assert query_times(None, lengths, ints(99, 77)) == (None, None)


@pytest.mark.parametrize("make_layout", [layouts.update, cached_layout])
@pytest.mark.parametrize("queries", [False, True])
def test_blocks_of_a_long_pass_leave_out_nothing_that_is_seen(make_layout, queries):
    """Cut into blocks of two rows, every row sees what it sees in one block."""
    options = dict(num_items=5, with_queries=queries)
    lengths, groups = ints([5, 3, 4])[0], ints([0, 1, 2])[0]

    def whole_mask(rows):
        layout = make_layout(lengths, groups, layouts.Sizes(2, 2, 4, rows), **options)
        tokens = layout.place.shape[1]
        masks = [np.asarray(mask_of(block, layout.num_slots)) for block in layout.blocks]
        wide = [np.pad(m, ((0, 0), (0, 0), (0, tokens - m.shape[2]))) for m in masks]
        return len(layout.blocks), np.concatenate(wide, axis=1)

    (one, expected), (several, found) = whole_mask(128), whole_mask(2)
    assert one == 1 and several >= 3
    np.testing.assert_array_equal(found, expected)
