"""Types shared by every signature, and the legend of axis letters.

Shapes are trailing comments, as in `memory: Array  # B G*C D`; docstrings write [B, G * C, D] and add
dtype and unit. `1|B` is an axis of length 1 or B: one row that serves all users, or one per user.

    B  users in a batch            T  events in a training window
    S  events per segment          K  segments per training window
    N  item tokens in a pass       C  slots (memory tokens) per group
    G  memory groups a state holds D  model width
    H  attention heads             V  catalogue size, padding row included
    E  entries of an exact memory  J  items of a user that score on their own

A pass of attention has axes of tokens (slots, then items), of rows (tokens that attend) and of keys
(tokens that a block of rows can reach). A head has dqk features of queries and keys, dv of values.
In `nn/catalogue`, T counts predicted positions, Q queries, R sampled negatives, or rows of a table that
n devices share.

Item ids are contiguous from 1; id 0 is padding everywhere. Times are int32 seconds since the
dataset's `time_origin` (x64 stays off). Sequences are padded on the right.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any  # nested containers with arrays as leaves
Params = Any  # a pytree of arrays, as flax.linen returns it
PRNGKey = jax.Array
Batch = dict[str, Any]
Terms = dict[str, tuple[Array, Array]]  # loss name -> (sum, weight), both float32 scalars

PADDING_ID = 0


class Events(NamedTuple):
    """A batch of interaction sequences, padded on the right.

    Attributes:
      ids: int32 [B, N], contiguous item ids; 0 where padded.
      times: int32 [B, N] seconds since the dataset's time origin, or None.
      types: int32 [B, N] event-type ids from 1 (0 where padded), or None.
    """

    ids: Array  # B N
    times: Array | None = None  # B N
    types: Array | None = None  # B N


class ExactMemory(NamedTuple):
    """The items of a user that are remembered by id, see `methods/exact_memory.py`.

    Attributes:
      items: int32 [B, E], item ids; 0 in entries that are not in use.
      weights: int32 [B, E], its count in 1/256, which fades from segment to segment.
      last: int32 [B, E], the clock of its last event: minutes since the dataset's time origin, or the
        number of the event in the user's history where the data have an order but no times.
    """

    items: Array  # B E
    weights: Array  # B E
    last: Array  # B E


class State(NamedTuple):
    """What is stored for a user between requests.

    Attributes:
      memory: float [B, G * C, D] preference memory (kv_mask: keys and values of all layers instead
        of D). Groups are aligned to the right: the newest group is the last C rows, and unused rows
        on the left are zero. Overwrite has G = 1. Methods without memory have zero rows here.
      groups: int32 [B], how many groups are in use.
      segments: int32 [B], how many segments the memory has seen; with `groups` 8 bytes per user of
        bookkeeping.
      exact: the exact memory; without one it has E = 0 entries.
    """

    memory: Array  # B G*C D
    groups: Array  # B
    segments: Array  # B
    exact: ExactMemory


class OwnItems(NamedTuple):
    """Items of a user whose scores get an addend; an item may occur more than once.

    Attributes:
      ids: int32 [B, J], 0 for none.
      addends: float32 [B, J], added to the score of the item; those of equal items add up. [B, N, J]
        where N rows of a user share the items.
    """

    ids: Array  # B J
    addends: Array  # B J


class Readout(NamedTuple):
    """What a read gives, and all that scoring needs.

    Attributes:
      vectors: float32 [..., D]: the dot product with an item's vector is its score.
      own: what the user's own items score beside that; None for a model without.
    """

    vectors: Array  # ... D
    own: OwnItems | None
