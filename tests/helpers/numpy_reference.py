"""Slow, obvious float64 models: one user, one token list, one full mask, no blocks and no padding.

Tokens stand in whatever order the text of the method writes them, `[S_0..S_h; Q]` or `[M; S; Q]`, and
who sees whom is a bool matrix. Parameters are those of the real modules.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Token(NamedTuple):
    """One token of a pass: its input vector and what a relative bias asks about it."""

    vector: np.ndarray  # [D]
    kind: str  # item | memory | query
    slot: int = 0  # memory, query: c
    place: int = 0
    time: int = 0  # item: seconds of the event
    asks: int = 0  # item, query: seconds its row asks for


def float64(params):
    if isinstance(params, dict):
        return {name: float64(value) for name, value in params.items()}
    return np.asarray(params, np.float64)


def layer_norm(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def time_bucket(gap: int) -> int:
    return min(128, max(0, math.floor(math.log(max(abs(gap), 1)) / 0.301)))


def gap_bucket(gap: int) -> int:
    """0 for no gap, 1 below a minute, then one per octave of minutes, at most 23."""
    if gap == 0:
        return 0
    bucket, minutes = 1, max(gap, 0) // 60
    while minutes:
        bucket, minutes = bucket + 1, minutes // 2
    return min(bucket, 23)


def sasrec_layer(p, x, sees):
    """Q = LN(x); m = MHA(Q, x, x); z = LN(Q + m); x = z + W2 relu(W1 z). x: [n, D]; sees: [n, n]."""
    q_in = layer_norm(x, 1e-8)
    heads, dim = p["query"]["bias"].shape
    mixed = np.zeros((len(x), heads, dim))
    for h in range(heads):
        q, k, v = (
            y @ p[name]["kernel"][:, h] + p[name]["bias"][h]
            for name, y in (("query", q_in), ("key", x), ("value", x))
        )
        for i in range(len(x)):
            keys = np.flatnonzero(sees[i])
            if len(keys):
                e = np.exp(q[i] @ k[keys].T / math.sqrt(dim))
                mixed[i, h] = (e / e.sum()) @ v[keys]
    m = np.einsum("nhd,hde->ne", mixed, p["out"]["kernel"]) + p["out"]["bias"]
    z = layer_norm(q_in + m, 1e-8)
    inner = np.maximum(z @ p["ffn_in"]["kernel"] + p["ffn_in"]["bias"], 0)
    return z + inner @ p["ffn_out"]["kernel"] + p["ffn_out"]["bias"]


def hstu_layer(p, x, sees, norm, bias):
    """y = x + W_o (u * LN(A v)) + b_o; A = SiLU(q k^T + b) / N * mask. bias: [n, n]."""
    normed = layer_norm(x, 1e-6)
    heads = p["uvqk"]["kernel"].shape[2]
    gates, mixed = [], []
    for h in range(heads):
        u, v, q, k = (silu(normed @ p["uvqk"]["kernel"][:, i, h]) for i in range(4))
        gates.append(u)
        mixed.append((silu(q @ k.T + bias) / norm * sees) @ v)
    u, av = np.concatenate(gates, 1), np.concatenate(mixed, 1)
    return x + (u * layer_norm(av, 1e-6)) @ p["out"]["kernel"] + p["out"]["bias"]


def hstu_bias(p, tokens, slots):
    """b_ij: by distance and time between events, by slot for memory and query keys. [n, n]."""
    bias = np.zeros((len(tokens), len(tokens)))
    if "position_bias" not in p:
        return bias
    longest = len(p["position_bias"]) - 1
    for i, row in enumerate(tokens):
        for j, key in enumerate(tokens):
            if key.kind != "item":
                bias[i, j] = p["slot_bias"][key.slot + (slots if key.kind == "query" else 0)]
                continue
            bias[i, j] = p["position_bias"][min(max(row.place - key.place, 0), longest)]
            if "time_bias" in p:
                bias[i, j] += p["time_bias"][time_bucket(row.asks - key.time)]
    return bias


def backbone(params, config, tokens, sees):
    """All layers over a list of `Token`; sees: bool [n, n] -> [n, D]."""
    layers = params["backbone"]["layers"]
    x = np.stack([token.vector for token in tokens])
    for i in range(config.model.layers):
        p = _index(layers, i)
        if config.model.backbone == "sasrec":
            x = sasrec_layer(p, x, sees)
        else:
            bias = hstu_bias(p, tokens, config.method.slots)
            x = hstu_layer(p, x, sees, config.data.window, bias)
    return x


def _index(tree, i):
    return {k: _index(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def event_vector(params, item, position, gap):
    table = params["embedding"]["item_embedding"]
    x = table[item] * math.sqrt(table.shape[1])
    if "position_embedding" in params["embedding"]:
        x = x + params["embedding"]["position_embedding"][position]
    if "gap_embedding" in params["embedding"]:
        x = x + params["embedding"]["gap_embedding"][gap_bucket(gap)]
    return x


def event_tokens(params, ids, times=None, asks=None, *, wrap):
    """Events as tokens: learned positions count modulo `wrap`, places from the first event."""
    zeros = [0] * len(ids)
    times, asks = zeros if times is None else times, zeros if asks is None else asks
    tokens = []
    for i, item in enumerate(ids):
        time, asked = int(times[i]), int(asks[i])
        vector = event_vector(params, item, i % wrap, asked - time)
        tokens.append(Token(vector, "item", 0, i, time, asked))
    return tokens


def items_see(config, n):
    """bool [n, n]: items of the reference pass see themselves and a window of earlier ones."""
    window, segment = config.method.reference_window, config.data.segment
    sees = np.tril(np.ones((n, n), bool))
    for row in range(n):
        if window:
            sees[row, : max(0, (row // segment - window + 1) * segment)] = False
    return sees


def reference_memory(params, config, queries, events, end):
    """A separate pass [S_0..S_h; Q]: outputs at Q [C, D]. queries: [C, D]; events: tokens."""
    asks = events[-1].time
    tokens = [*events, *(Token(q, "query", c, end, 0, asks) for c, q in enumerate(queries))]
    n = len(events)
    sees = np.zeros((len(tokens), len(tokens)), bool)
    sees[:n, :n] = items_see(config, n)
    sees[n:, :] = True  # queries: every item and one another
    return backbone(params, config, tokens, sees)[n:]


def recalled(params, config, memory):
    """What memory recalls, [D]. memory: the groups in use as stored, [G*C, D]."""
    memory, slots = np.asarray(memory, np.float64), config.method.slots
    groups = len(memory) // slots
    total = np.zeros(memory.shape[1])
    for group in range(groups):
        total += (
            memory[group * slots : (group + 1) * slots].reshape(-1) @ params["memory"]["recall"]
        )
    return params["memory"]["recall_gain"] * total / max(groups, 1)


def update_pass(params, config, memory, queries, events):
    """[M; S; Q]: the backbone's (outputs at S [N, D], at Q [C, D]). memory: tokens [G*C, D] or none."""
    slots = config.method.slots
    asks = events[-1].time
    tokens = [
        *(Token(m, "memory", c % slots) for c, m in enumerate(memory)),
        *events,
        *(Token(q, "query", c, config.data.segment, 0, asks) for c, q in enumerate(queries)),
    ]
    m, s = len(memory), len(memory) + len(events)
    sees = np.zeros((len(tokens), len(tokens)), bool)
    sees[:, :m] = True  # everybody sees the memory
    for i in range(m, s):
        sees[i, m : i + 1] = True  # an event: events up to itself
    sees[s:, :] = True  # queries: everything
    out = backbone(params, config, tokens, sees)
    return out[m:s], out[s:]
