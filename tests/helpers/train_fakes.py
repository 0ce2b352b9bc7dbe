"""A tiny next-item model, an endless dataset, and a comparison of runs, for tests of training."""

from __future__ import annotations

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.training.checkpoint import load_for_inference

WINDOW = 6


class FakeMethod:
    """An embedding, a dense layer and tied logits.

    With `noise` the loss depends on the key.
    """

    def __init__(self, config: Config, num_items: int = 12, dim: int = 8, noise: float = 0.0):
        self.config, self.num_items, self.dim, self.noise = config, num_items, dim, noise

    def init(self, rng):
        table, kernel = jax.random.split(rng)
        return {
            "item": {"embedding": 0.3 * jax.random.normal(table, (self.num_items + 1, self.dim))},
            "dense": {
                "kernel": 0.3 * jax.random.normal(kernel, (self.dim, self.dim)),
                "bias": jnp.zeros(self.dim),
            },
        }

    def loss(self, params, batch, rng):
        table = params["item"]["embedding"]
        hidden = table[batch["ids"][:, :-1]]
        if self.noise and rng is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(batch["index"])
            sample = jax.vmap(lambda key: jax.random.normal(key, hidden.shape[1:]))(keys)
            hidden = hidden + self.noise * sample
        hidden = hidden @ params["dense"]["kernel"] + params["dense"]["bias"]
        logits = hidden @ table.T
        targets = batch["ids"][:, 1:]
        valid = (targets != 0).astype(jnp.float32)
        taken = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - taken
        # A second term whose weight is 0 in some micro-batches and never in whole batches.
        long = valid[:, -1]
        return {
            "ar": ((losses * valid).sum(), valid.sum()),
            "norm": (((hidden**2).mean(axis=(1, 2)) * long).sum(), long.sum()),
        }

    loss_weights = {"ar": 1.0, "norm": 0.05}


def is_step(rng, step: int, seed: int = 0):
    """Return whether `rng` is the key of a step; a loss does not get the step's number."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jnp.all(jax.random.key_data(rng) == jax.random.key_data(key))


class Sequences:
    """Random-access source of padded sequences: `ids` int32 [WINDOW + 1] and `index`."""

    def __init__(self, users: int = 40, num_items: int = 12):
        rng = np.random.default_rng(0)
        self.ids = rng.integers(1, num_items + 1, (users, WINDOW + 1)).astype(np.int32)
        lengths = rng.integers(3, WINDOW + 2, users)
        self.ids[np.arange(WINDOW + 1) >= lengths[:, None]] = 0

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"ids": self.ids[index], "index": np.int32(index)}


def make_iterator(batch_size: int, seed: int = 0):
    """Return a Grain iterator of batches, shuffled and repeated for ever, that checkpoints save."""
    return iter(
        grain.MapDataset.source(Sequences())
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )


def fake_validation(params) -> dict[str, float]:
    """Return a deterministic stand-in for NDCG@10: higher when the dense kernel is larger."""
    return {"ndcg@10": float(jnp.abs(params["dense"]["kernel"]).mean())}


def assert_same_run(workdir, expected):
    """Assert that logs, summary and final arrays are equal bit for bit.

    Clock times and the commit may differ.
    """
    for stream in ("train", "validation"):
        got = (workdir / f"train/{stream}.jsonl").read_bytes()
        assert got == (expected / f"train/{stream}.jsonl").read_bytes()
    summaries = [json.loads((d / "train/summary.json").read_text()) for d in (workdir, expected)]
    for name in summaries[0].keys() - {"wall_s", "tokens_per_s", "git_commit"}:
        assert summaries[0][name] == summaries[1][name], name
    (_, got, _), (_, want, _) = (load_for_inference(d, "latest") for d in (workdir, expected))
    jax.tree.map(np.testing.assert_array_equal, got, want)
