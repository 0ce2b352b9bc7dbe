"""Check that a checkpoint, a configuration and a dataset belong to the same run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import as_stored, config_hash, to_dict
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.errors import UserError

# Sections that may change between starts: how long, how often and on what a run is computed. Apart
# from rounding the run stays the same.
_FREE_SECTIONS = ("train.", "compute.")
# Of these, the fields that decide which batches and random numbers a step sees.
_FIXED_FIELDS = ("train.seed", "train.batch_size")

_log = logging.getLogger(__name__)


def check_same_run(
    meta: Mapping[str, Any],
    config: Config,
    data_hash: str,
    workdir: str | Path,
    grown_from: Collection[str] = (),
) -> None:
    """Check that training may continue from a checkpoint.

    Args:
      meta: the meta of the checkpoint.
      config: the configuration to train with.
      data_hash: content hash of the data to train on.
      workdir: named in messages.
      grown_from: content hashes that the data had before logs were appended to them.

    Raises:
      UserError: the configuration or the data differ, or the run is complete although its data have
        grown. The message names what differs.
    """
    changed = _differences(as_stored(meta["config"]), to_dict(config))
    fatal = {
        name: values
        for name, values in changed.items()
        if not name.startswith(_FREE_SECTIONS) or name in _FIXED_FIELDS
    }
    if fatal or meta["config_hash"] != config_hash(config):
        listing = "; ".join(f"config.{n} was {a!r}, now {b!r}" for n, (a, b) in fatal.items())
        raise UserError(
            f"{workdir} holds a run of another config ({listing or 'the code has changed'}). Use "
            "another --workdir, or the config it was started with."
        )
    grown = meta["data_hash"] in grown_from
    if meta["data_hash"] != data_hash and not grown:
        raise UserError(
            f"{workdir} was trained on other data (content hash {meta['data_hash']}, now "
            f"{data_hash}). Use another --workdir, or point --data to the data it was started with."
        )
    if grown and meta["step"] >= config.train.steps:
        raise UserError(
            f"{workdir} is complete at step {meta['step']}, and its data were appended to since then; "
            f"to train on, raise --config.train.steps (now {config.train.steps})."
        )
    derived = config.optim.schedule == "cosine" and not config.optim.decay_steps
    if derived and "train.steps" in changed:
        old, new = changed["train.steps"]
        _log.warning(
            "train.steps changes from %s to %s: the cosine schedule, which follows it, changes too "
            "(set config.optim.decay_steps to keep one).",
            old,
            new,
        )


def open_training_data(
    data: str | Path | None, workdir: str | Path, meta: Mapping[str, Any]
) -> Dataset:
    """Open the dataset a run was trained on.

    Events may have been appended since then: ids stay, and `new_items.grow_items` makes room for
    new items.

    Args:
      data: directory of the dataset; None or empty for the place that the checkpoint names.
      workdir: directory of the run, named in messages.
      meta: the meta of the checkpoint.

    Raises:
      UserError: the place is unknown, or the dataset there has another content.
    """
    path = data or meta.get("data_path")
    if not path:
        raise UserError(f"{workdir} does not say which data it was trained on; pass --data=DIR.")
    dataset = open_dataset(path)
    known = (dataset.content_hash, *dataset.info.get("grown_from", ()))
    if meta["data_hash"] not in known:
        raise UserError(
            f"{path} has content hash {dataset.content_hash}, {workdir} was trained on "
            f"{meta['data_hash']}; pass --data=DIR with the data it was trained on."
        )
    return dataset


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {"section.field": (old, new)} for the fields that differ."""
    before, after = _flatten(old), _flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"section.field": value} of a nested configuration."""
    return {
        f"{section}.{field}": value
        for section, fields in config.items()
        for field, value in fields.items()
    }
