"""Check that a checkpoint, a configuration and a dataset belong to the same run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import run_identity

# Fields outside of `run_identity` that decide which batches and random numbers a step sees. Others of
# these sections may change between starts: apart from rounding the run stays the same.
_FIXED_FIELDS = ("seed", "batch_size")

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
    stored = read_stored_config(meta, workdir)
    changed = _differences(_fixed(stored), _fixed(config))
    if changed:
        listing = "; ".join(f"config.{n} was {a!r}, now {b!r}" for n, (a, b) in changed.items())
        raise UserError(
            f"{workdir} holds a run of another config ({listing}). Use another --workdir, or the "
            "config it was started with."
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
    old, new = stored.train.steps, config.train.steps
    if config.optim.schedule == "cosine" and old != new:
        _log.warning(
            "train.steps changes from %s to %s: the cosine schedule, which ends there, changes too.",
            old,
            new,
        )


def check_features(config: Config, dataset: Dataset) -> None:
    """Check that the data have the event types and the times that the model reads.

    Target types are checked where targets are found, as that reads all events.

    Args:
      config: the configuration to train or to serve with.
      dataset: the data.

    Raises:
      UserError: `model.event_types` is neither 0 nor the number of types, or the model reads times
        that the data do not have.
    """
    wanted, types = config.model.event_types, dataset.event_types
    if wanted and not types:
        raise UserError(
            f"config.model.event_types={wanted}, but {dataset.path} has no event types: set it to 0, "
            "or prepare the log with its column of event types."
        )
    if wanted not in (0, len(types)):
        raise UserError(
            f"config.model.event_types={wanted}, but {dataset.path} has {len(types)} event types "
            f"({', '.join(types[:10])}): set it to {len(types)}, or to 0 to ignore them."
        )
    if config.reads_times and not dataset.has_times:
        wrong, right = "relative_bias=position_time", "use position"
        if config.model.use_times:
            wrong, right = "use_times=true", "set it to false"
        raise UserError(
            f"config.model.{wrong}, but {dataset.path} has no times, only the order of events: "
            f"{right}."
        )


def fit_to_data(config: Config, dataset: Dataset) -> Config:
    """Return the configuration with the fields that the data decide.

    `model.use_times` is true where the dataset has real times, unless it is set.

    Args:
      config: the configuration to train with.
      dataset: the data.

    Raises:
      UserError: as `check_features`.
    """
    if config.model.use_times is None:
        model = dataclasses.replace(config.model, use_times=dataset.has_times)
        config = dataclasses.replace(config, model=model)
    check_features(config, dataset)
    return config


def read_stored_config(meta: Mapping[str, Any], workdir: str | Path) -> Config:
    """Return the configuration that a checkpoint was written with.

    Args:
      meta: the meta of the checkpoint.
      workdir: named in messages.

    Raises:
      UserError: the checkpoint is of a version with other fields.
    """
    try:
        return from_dict(meta["config"])
    except UserError as error:
        raise UserError(
            f"{workdir} was written by another version of rec2pm_jax ({error}) Install that version, "
            "or train again in another --workdir."
        ) from error


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
    check_features(read_stored_config(meta, workdir), dataset)
    return dataset


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {"section.field": (old, new)} for the fields that differ."""
    before, after = _flatten(old), _flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


def _fixed(config: Config) -> dict[str, dict[str, Any]]:
    """Return the fields, by section, that must not change when a run is resumed."""
    train = to_dict(config)["train"]
    return run_identity(config) | {"train": {name: train[name] for name in _FIXED_FIELDS}}


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"section.field": value} of a nested configuration."""
    return {
        f"{section}.{field}": value
        for section, fields in config.items()
        for field, value in fields.items()
    }
