"""Formats of stored memory: sizes, exactness, and the same bits in and out of compiled code."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS, decode, encode, rounded, slot_bytes

normal = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
memories = arrays.arrays(np.float32, (2, 3, 8), elements=normal)


@pytest.mark.parametrize(("kind", "size"), [("float32", 1024), ("bfloat16", 512), ("int8", 272)])
def test_bytes_of_four_slots_of_64(kind, size):
    encoded = encode(np.ones((5, 4, 64), np.float32), kind)
    assert encoded.shape == (5, size) and encoded.dtype == np.uint8
    assert 4 * slot_bytes(kind, 64) == size


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=50, deadline=None)
@given(memory=memories)
def test_what_comes_back(kind, memory):
    back = decode(encode(memory, kind), kind, 8)
    assert back.shape == memory.shape and back.dtype == np.float32
    largest = np.abs(memory).max(-1, keepdims=True)
    error = {"float32": 0, "bfloat16": 2**-8 * np.abs(memory), "int8": largest / 127 * 0.5001}
    assert (np.abs(back - memory) <= error[kind] + 2e-36).all()
    np.testing.assert_array_equal(jax.jit(rounded, static_argnums=1)(memory, kind), back)


def test_int8_by_hand():
    memory = np.array([[[1.27, -0.635, 0.004, 0.006]], [[0, 0, 0, 0]]], np.float32)
    encoded = encode(memory, "int8")
    assert encoded[0, 4:].view(np.int8).tolist() == [127, -64, 0, 1]  # -63.5 to the even
    assert encoded[0, :4].view("<f4") == pytest.approx(0.01)
    assert not encoded[1].any() and not decode(encoded, "int8", 4)[1].any()


def test_slots_are_coded_each_for_itself():
    memory = np.random.default_rng(0).normal(size=(1, 2, 8)).astype(np.float32)
    louder = memory * np.float32([[[1], [1000]]])
    for kind in FORMATS:
        np.testing.assert_array_equal(
            decode(encode(memory, kind), kind, 8)[0, 0], decode(encode(louder, kind), kind, 8)[0, 0]
        )


def test_bad_formats_and_sizes_are_refused():
    with pytest.raises(UserError, match="'int4' is unknown; choose one of float32"):
        encode(np.zeros((1, 1, 8), np.float32), "int4")
    with pytest.raises(UserError, match=r"13 bytes are not whole slots of 12 bytes \(int8, D=8\)"):
        decode(np.zeros((1, 13), np.uint8), "int8", 8)
