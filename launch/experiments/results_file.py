"""The results of a suite: `RESULTS/SUITE.json` and the per-user values in `RESULTS/SUITE.users/`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.experiments.run import Run
from launch.experiments.settings import override
from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.metrics import ndcg
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.evaluation.report import display_name
from rec2pm_jax.json_file import replaced_file
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.runs import Result, evaluate_heuristics, list_heuristics


class SuiteResults:
    """Records of a suite and the per-user arrays beside them.

    Attributes:
      suite: name of the suite.
      path: the JSON file; tables and figures lie beside it.
      records: a list of evaluation records, each with `run`, `variant` and `budget`.
    """

    def __init__(self, folder: str | Path, suite: str):
        """Read what is there.

        Raises:
          UserError: the file is not a list of a suite's records.
        """
        self.suite = suite
        self.path = Path(folder) / f"{suite}.json"
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            try:
                self.records = json.loads(self.path.read_text())
            except json.JSONDecodeError as error:
                raise UserError(f"{self.path} is not JSON ({error}); move it away.") from error
            if not all(isinstance(r, dict) and {"run", "variant"} <= set(r) for r in self.records):
                raise UserError(f"{self.path} holds other things than a suite's; move it away.")

    def users_path(self, name: str) -> Path:
        """Return the file of the per-user values of a run."""
        folder = self.path.with_suffix(".users")
        return folder / (re.sub(r"[^\w.=-]+", "_", name) + ".npz")

    def has(self, run: Run, data_hash: str) -> bool:
        """Return whether a run is here, with the same configuration, budget, seed and data."""
        own = [r for r in self.records if r["run"] == run.name]
        return self.users_path(run.name).exists() and any(_matches(r, run, data_hash) for r in own)

    def drop_stale(self, runs: Sequence[Run], hashes: Mapping[str, str]) -> list[str]:
        """Delete records that do not belong to the suite as it is now defined.

        Args:
          runs: all runs of the suite.
          hashes: content hashes by dataset; data of datasets that are not listed are accepted.

        Returns:
          Names of the deleted runs.
        """
        by_name = {run.name: run for run in runs}
        stale = []
        for record in self.records:
            if record["config_hash"] is None:  # a heuristic: see `add_heuristics`
                continue
            run = by_name.get(record["run"])
            if run is None or not _matches(record, run, hashes.get(run.dataset)):
                stale.append(record)
        names = list(dict.fromkeys(record["run"] for record in stale))
        if names:
            self.records = [record for record in self.records if record not in stale]
            write_records(self.path, self.records)
            for name in names:
                self.users_path(name).unlink(missing_ok=True)
        return names

    def add_run(self, run: Run, workdir: Path) -> None:
        """Copy the records of a finished run; they replace those of the same name."""
        records, users = output_paths(self.suite, run, workdir)
        new = json.loads(records.read_text())
        with replaced_file(self.users_path(run.name)) as temporary:
            shutil.copyfile(users, temporary)
        self.records = [r for r in self.records if r["run"] != run.name] + new
        write_records(self.path, self.records)

    def add_heuristics(self, name: str, path: Path, config: Config) -> None:
        """Evaluate the heuristics of a dataset, unless they are here for the same data and protocol.

        Args:
          name: key of `DATASETS`.
          path: the prepared dataset.
          config: names protocol and windows.
        """
        dataset = open_dataset(path)
        kept = [r for r in self.records if r["run"].startswith(f"{name}/heuristics/")]
        setting: dict[str, Any] = {
            "data_hash": dataset.content_hash,
            "protocol": config.data.protocol,
        }
        setting |= protocol_settings(config.data)
        same = all(setting.items() <= (r["config"] | r).items() for r in kept)
        wanted = {
            (one.name, one.window, one.half_life, known)
            for one, known in list_heuristics(config, dataset)
        }
        if same and wanted == {_heuristic_key(record) for record in kept}:
            return
        self.records = [r for r in self.records if r not in kept]
        for result in evaluate_heuristics(config, dataset):
            variant = display_name(result.record)
            result.record.update(run=f"{name}/heuristics/{variant}", variant=variant)
            users = self.users_path(result.record["run"])
            users.parent.mkdir(parents=True, exist_ok=True)
            write_user_values(users, [result])
            self.records.append(result.record)
        write_records(self.path, self.records)


def output_paths(suite: str, run: Run, workdir: str | Path) -> tuple[Path, Path]:
    """Return where a run leaves its records and its per-user values: two suites may share a run."""
    directory = Path(workdir) / run.name
    return directory / f"{suite}.json", directory / f"{suite}.npz"


def write_user_values(path: Path, results: Sequence[Result]) -> None:
    """Write the per-user values behind the intervals of tables.

    The file holds NDCG@10 `ndcg` float32 [records, users] and events before the last target `lengths`
    int32 [users]. With `by_target` it also holds `target_ndcg` float32 [records, targets], and
    `target_user` and `target_position` (events before the target) int32 [targets].

    Args:
      path: an .npz file, replaced as a whole.
      results: evaluations of the same targets.
    """
    evaluation = results[0].evaluation
    users = np.unique(evaluation.user, return_inverse=True)[1]
    lengths = np.zeros(users.max() + 1, np.int32)
    np.maximum.at(lengths, users, evaluation.position.astype(np.int32))
    per_user = np.stack([result.evaluation.user_ndcg for result in results])
    arrays: dict[str, Any] = {"ndcg": per_user.astype(np.float32), "lengths": lengths}
    if results[0].by_target:
        per_target = np.stack([ndcg(result.evaluation.rank, 10) for result in results])
        arrays["target_ndcg"] = per_target.astype(np.float32)
        arrays["target_user"] = users.astype(np.int32)
        arrays["target_position"] = evaluation.position.astype(np.int32)
    with replaced_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def _heuristic_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes a heuristic from the others of its table; weights are results."""
    setting = (record["config"].get(name) for name in ("window", "half_life"))
    return record["method"], *setting, record.get("request_time_known", False)


def _matches(record: Mapping[str, Any], run: Run, data_hash: str | None) -> bool:
    """Return whether a record is of the run as it is now defined; `data_hash` None: on any data."""
    config = run.config
    if config.model.use_times is None:  # the data decided it, see `fit_to_data`
        config = override(config, model={"use_times": record["config"]["model"]["use_times"]})
    return (
        record["config_hash"] == config_hash(config)
        and record["budget"] == run.budget
        and data_hash in (None, record["data_hash"])
    )
