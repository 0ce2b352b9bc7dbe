"""The backbones that `config.model.backbone` may name: one file each in `nn/layers/`."""

from __future__ import annotations

import dataclasses

import flax.linen as nn

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.registry import Registry

BACKBONES: Registry[type[nn.Module]] = Registry("model.backbone", "rec2pm_jax.nn.layers")
register_backbone = BACKBONES.register


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What a layer is built from: a layer class takes it as its only argument.

    Attributes:
      config: the model section of the configuration.
      score_norm: N, the constant by which HSTU divides attention scores; the same in every pass.
      max_distance: largest row-key distance with a learned bias; larger ones share the last.
      num_slot_ids: rows of the learned slot bias, see `Layout.slot_ids`.
      compute: how attention is computed.
    """

    config: ModelConfig
    score_norm: float
    max_distance: int
    num_slot_ids: int
    compute: ComputeConfig = ComputeConfig()


def uses_identity_init(config: ModelConfig) -> bool:
    """Return whether values and memory start as copies: asked for, and the backbone supports it."""
    return config.identity_init and "identity_init" in BACKBONES[config.backbone].reads
