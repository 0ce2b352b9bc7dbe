"""Run launch.train with SGD for the dense parameters: with Adam rounding would grow step by step."""

from __future__ import annotations

import optax

from launch import train
from rec2pm_jax import cli
from rec2pm_jax.training import partition

if __name__ == "__main__":
    partition.make_dense_optimizer = lambda *_: optax.sgd(0.05)
    cli.run(train.main)
