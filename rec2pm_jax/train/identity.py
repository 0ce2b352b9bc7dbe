"""Is this workdir's checkpoint part of the run that was asked for, and are these its data?"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import as_stored, config_hash, to_dict
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.errors import UserError

# Of `config.train`, the fields that decide which batches and random numbers a step sees. The others
# (how long, how often logged, validated and saved) may change between starts.
_FIXED = ("train.seed", "train.batch_size")

_log = logging.getLogger(__name__)


def check_same_run(
    meta: Mapping[str, Any],
    config: Config,
    data_hash: str,
    workdir: str | Path,
    grown_from: Collection[str] = (),
) -> None:
    """Compares a checkpoint's meta with what is about to be trained.

    Args:
      grown_from: content hashes of the data before logs were appended; a run on these goes on.

    Raises:
      UserError: another config, other data, or a complete run with data that have grown; the message
        names what differs.
    """
    changed = _differences(as_stored(meta["config"]), to_dict(config))
    free = (
        "train.",
        "compute.",
    )  # how long, how often, and how: rounding apart the run is the same
    fatal = {n: v for n, v in changed.items() if not n.startswith(free) or n in _FIXED}
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
    """Opens `data`, or what the run was trained on where that is empty.

    Events may have been appended since: ids stay, and `growth.grow_items` makes room for new items.

    Raises:
      UserError: nothing to open, or a dataset with another content.
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
    """{"section.field": (old, new)} where nested dicts of one level differ."""
    old, new = (
        {f"{s}.{f}": value for s, fields in c.items() for f, value in fields.items()}
        for c in (old, new)
    )
    return {
        name: (old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }
