"""The study of a search: an Optuna study in a file of its workdir, which every call continues."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from launch.tuning.halving import KEPT, PromotingPruner
from launch.tuning.space import Dimension, read_setting
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.errors import UserError

JOURNAL = "study.journal"
SAMPLERS = ("tpe", "random")
_IDENTITY = "identity"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a search tries.

    Attributes:
      preset: name or file of the preset that it starts from.
      changes: fields that every run has, by their dotted names.
      config: the configuration of the preset with these changes.
      dimensions: the fields that are searched.
      rungs: steps at which runs are compared; the last one ends a run.
      eta: one of so many runs continues after a rung.
    """

    preset: str
    changes: Mapping[str, Any]
    config: Config
    dimensions: Sequence[Dimension]
    rungs: Sequence[int]
    eta: int

    def describe(self) -> dict[str, Any]:
        """Return what must stay the same from one call to the next."""
        return {
            "config": to_dict(self.config),
            "search": {d.field: d.text for d in self.dimensions},
            "rungs": list(self.rungs),
            "reduction": self.eta,
        }


def open_study(
    plan: Plan, workdir: Path, data_hash: str, sampler: str, seed: int
) -> tuple[optuna.Study, PromotingPruner]:
    """Open the study of a workdir, or begin one with the setting of the preset.

    Args:
      plan: of the search.
      workdir: of the search; the caller holds its lock.
      data_hash: content hash of the data.
      sampler: one of SAMPLERS.
      seed: of the sampler.

    Returns:
      The study and its pruner.

    Raises:
      UserError: the workdir holds another search, or its study cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    path = workdir / JOURNAL
    _cut_last_line(path)
    pruner = PromotingPruner(plan.rungs, plan.eta)
    try:
        study = optuna.create_study(
            study_name="tune",
            direction="maximize",
            storage=JournalStorage(JournalFileBackend(str(path))),
            pruner=pruner,
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): use another --workdir.") from error
    known, trials = study.user_attrs.get(_IDENTITY), study.get_trials(deepcopy=False)
    identity = plan.describe() | {"data_hash": data_hash}
    if known is None:
        study.set_user_attr(_IDENTITY, identity)
        setting = read_setting(plan.config, plan.dimensions)
        outside = [d for d in plan.dimensions if not d.contains(setting[d.field])]
        if not outside:
            study.enqueue_trial(setting, user_attrs={KEPT: True})
        for one in outside:
            print(f"{one.field}={setting[one.field]} of the preset is not part of {one.text}: the")
            print(
                "preset's setting is not tried. Compare with it by launch.train and launch.compare."
            )
    elif known != identity:
        raise UserError(f"{workdir} holds another search ({_differences(known, identity)}).")
    # A sampler with the seed of the last call would repeat its first suggestions.
    seed += len(trials)
    study.sampler = (
        optuna.samplers.TPESampler(seed=seed)
        if sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    return study, pruner


def _differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs between two identities, and what to do."""
    names = [name for name in now if known.get(name) != now[name] and name != "config"]
    parts = [f"{name} was {known.get(name)}, now {now[name]}" for name in names]
    for section, fields in now["config"].items():
        for field, value in fields.items():
            old = known["config"].get(section, {}).get(field)
            if old != value:
                parts.append(f"config.{section}.{field} was {old!r}, now {value!r}")
    return "; ".join(parts) + "; use another --workdir, or what it was started with"


def _cut_last_line(path: Path) -> None:
    """Remove a last line that a crash of the machine left half written."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
