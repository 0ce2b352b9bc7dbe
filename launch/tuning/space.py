"""The search space of `launch.tune`, as its flags write it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import distributions as optuna_distributions

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import field_types, to_dict
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.presets import load_preset

_ANY_ITEMS = 10  # items of a method that is made only to see whether that fails
_FORMS = "write FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=A,B,C"
# Fields whose settings cannot be compared by the metric of a validation, and why.
_REFUSED = {
    "train.steps": "is the budget of a run; set it with --config.train.steps",
    "train.eval_every": "is set by the rungs of the search",
    "train.checkpoint_every": "is set by the rungs of the search",
    "train.patience": "is set by the rungs of the search",
    "train.log_every": "does not change the model",
    "train.seed": "is no setting: the best of several seeds is luck",
    "train.eval_users": "changes what validation measures",
    "data.protocol": "changes what validation measures",
    "data.split_time": "changes what validation measures",
    "data.validation_days": "changes what validation measures",
    "loss.target_types": "changes what validation measures",
}


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One field of the configuration and the values that it may take.

    Attributes:
      field: its dotted name.
      text: the values, as the flag has them.
      distribution: of Optuna.
    """

    field: str
    text: str
    distribution: optuna_distributions.BaseDistribution

    def contains(self, value: Any) -> bool:
        """Return whether the search may try a value."""
        choices = getattr(self.distribution, "choices", None)
        if choices is not None:
            return any(value == c and type(value) is type(c) for c in choices)
        low, high = self.distribution.low, self.distribution.high  # type: ignore[attr-defined]
        return value is not None and low <= value <= high

    def corners(self) -> Sequence[Any]:
        """Return the values that a configuration must accept: all choices, or both ends."""
        choices = getattr(self.distribution, "choices", None)
        if choices is not None:
            return choices
        return self.distribution.low, self.distribution.high  # type: ignore[attr-defined]


def parse_space(
    searches: Sequence[str], preset: str | Path, changes: Mapping[str, Any]
) -> list[Dimension]:
    """Return the dimensions of a search.

    Args:
      searches: values of `--search`.
      preset: the preset that the search starts from.
      changes: further fields that every trial has, by their dotted names.

    Raises:
      UserError: an unknown field, one that cannot be searched, one that is named twice, a range that
        is not one, or values that the configuration refuses.

    >>> [d] = parse_space(["optim.learning_rate=1e-3..2e-2:log"], "demo", {})
    >>> d.distribution
    FloatDistribution(high=0.02, log=True, low=0.001, step=None)
    """
    dimensions = [_parse(search) for search in searches]
    for i, dimension in enumerate(dimensions):
        field = dimension.field
        if field in [d.field for d in dimensions[:i]]:
            raise UserError(f"--search={searches[i]}: {field} is searched twice; name it once.")
        if field in changes:
            raise UserError(
                f"--search={searches[i]}: --config.{field} is given, too; leave one of them out."
            )
        for value in dimension.corners():
            try:
                load_checked(preset, {**changes, field: value})
            except UserError as error:
                raise UserError(f"--search={searches[i]}: {error}") from error
    return dimensions


def load_checked(preset: str | Path, changes: Mapping[str, Any]) -> Config:
    """Return the configuration of a preset with some fields changed, if a method can be made of it.

    Raises:
      UserError: a value is refused, or there is no method or backbone of that name.
    """
    config = load_preset(preset, changes)
    make_method(config, _ANY_ITEMS)
    return config


def read_setting(config: Config, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """Return the values of a configuration in the fields of a search."""
    values = to_dict(config)
    parts = [d.field.split(".") for d in dimensions]
    return {f"{section}.{field}": values[section][field] for section, field in parts}


def _parse(search: str) -> Dimension:
    """Return the dimension that a flag describes."""
    field, equals, text = search.partition("=")
    known = field_types()
    if not equals or not text:
        raise UserError(f"--search={search}: {_FORMS}.")
    if field not in known:
        raise UserError(f"--search={search}: there is no field {field}.{nearest(field, known)}")
    if field in _REFUSED or field.startswith("compute."):
        why = _REFUSED.get(field, "changes speed, not the model")
        raise UserError(f"--search={search}: {field} {why}.")
    kind, optional = known[field]
    if ".." in text:
        return Dimension(field, text, _parse_range(search, text, kind))
    choices = [_parse_value(search, word, kind, optional) for word in text.split(",")]
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(f"--search={search}: name at least two different values.")
    return Dimension(field, text, optuna_distributions.CategoricalDistribution(choices))


def _parse_range(search: str, text: str, kind: type) -> optuna_distributions.BaseDistribution:
    if kind not in (int, float):
        raise UserError(f"--search={search}: a field of type {kind.__name__} needs a list A,B,C.")
    ends, colon, scale = text.partition(":")
    if scale != ("log" if colon else ""):
        raise UserError(f"--search={search}: after the range only :log can follow.")
    low, high = (_parse_value(search, word, kind, False) for word in ends.split("..", 1))
    if not low < high:
        raise UserError(f"--search={search}: {low} must be below {high}.")
    if colon and low <= 0:
        raise UserError(f"--search={search}: a logarithmic range must begin above 0.")
    if kind is int:
        return optuna_distributions.IntDistribution(low, high, log=bool(colon))
    return optuna_distributions.FloatDistribution(low, high, log=bool(colon))


def _parse_value(search: str, word: str, kind: type, optional: bool) -> Any:
    """Return the value that a word means for a field."""
    word = word.strip()
    if optional and word == "None":
        return None
    if kind is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        value = word if kind is str and word else None if kind is bool else kind(word)
    except ValueError:
        value = None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"--search={search}: {word!r} is no {kind.__name__}; {_FORMS}.")
    return value
