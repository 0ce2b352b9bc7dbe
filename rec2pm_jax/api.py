"""The functions of `import rec2pm_jax`: from events to a trained model, its scores and its answers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.data.options import READING, PrepareOptions
from rec2pm_jax.data.prepare import prepare as write_dataset
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluation.evaluator import evaluate as evaluate_method
from rec2pm_jax.evaluation.record import Evaluation
from rec2pm_jax.evaluation.spec import EvalSpec, Measures
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.load import load_quietly, load_recommender, make_recommender
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.observers import Callback, Observers, Tracker
from rec2pm_jax.training.run_checks import fit_to_data, open_training_data
from rec2pm_jax.training.trackers import open_tracker

_COLUMN_OPTIONS = [name for name in READING if name.endswith("_column")]


def prepare(events: Any, output_dir: str | Path, **options: Any) -> Dataset:
    """Prepare a dataset from a log with one row per event.

    Args:
      events: a file, directory or pattern (CSV, TSV, Parquet, JSON-lines), or a frame: anything
        that returns a column for `events[name]`, such as a pandas or polars frame or a dict. With
        another `source`, what that source reads; "" for `synthetic`.
      output_dir: directory of the dataset. If it already holds this very dataset, it is opened.
      options: fields of `data.options.PrepareOptions`, for example `user_column`, `item_column`,
        `time_column` ("user", "item" and "timestamp" by default), `min_item_count`, `overwrite`.

    Returns:
      The dataset, as `open_dataset` opens it.

    Raises:
      UserError: an unknown option or column, a value that cannot be read (with its row), nothing
        left after the filters, or an `output_dir` that holds something else.

    Example:
      >>> import rec2pm_jax
      >>> events = {"who": ["ann", "bob", "ann"], "what": ["tea", "tea", "milk"], "when": [1, 2, 3]}
      >>> columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
      >>> dataset = rec2pm_jax.prepare(events, "data", **columns)
      >>> dataset.num_users, dataset.num_items
      (2, 2)
    """
    known = PrepareOptions.__dataclass_fields__
    for name in options:
        if name not in known:
            raise UserError(f"prepare() has no option {name}.{nearest(name, known)}")
    given: dict[str, Any] = {"source": "interactions", "progress": False} | options
    with contextlib.ExitStack() as stack:
        if not isinstance(events, str | Path):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            columns = [given.get(name) or READING[name] for name in _COLUMN_OPTIONS]
            rules = (*given.get("drop", ()), *given.get("keep", ()))
            columns += [rule.partition("=")[0] for rule in rules]
            names = list(dict.fromkeys(name for name in columns if name))
            events = _write_columns(events, names, Path(directory))
        write_dataset(PrepareOptions(input=str(events), output_dir=str(output_dir), **given))
    return open_dataset(output_dir)


def train(
    config: Config,
    dataset: Dataset,
    workdir: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker | str] = (),
) -> Recommender:
    """Train a model, or resume its training, and return its best checkpoint.

    The workdir receives checkpoints, logs, and a summary. A call with the same arguments resumes a
    killed run exactly and loads a complete one.

    Args:
      config: the whole configuration, see `load_preset`.
      dataset: a prepared dataset.
      workdir: a new directory, or one of the same run.
      callbacks: functions of a `training.observers.TrainingEvent`, called at every validation and
        after every checkpoint. Their errors end the training.
      trackers: further writers of metrics, as objects or as the flag --tracker names them.

    Returns:
      The model of the step with the best validation NDCG@10, as `load` loads it.

    Raises:
      UserError: the workdir belongs to another run or cannot be written, or the loss diverges.
      Preempted: SIGTERM was received or a callback asked to stop; the same call continues.

    Example:
      >>> import rec2pm_jax
      >>> dataset = rec2pm_jax.prepare("", "data", source="synthetic", synthetic_users=20)
      >>> changes = {"method.name": "recent", "train.steps": 2, "train.batch_size": 4}
      >>> config = rec2pm_jax.load_preset("synthetic", changes)
      >>> seen = []
      >>> def note(event):
      ...     seen.append((event.kind, event.step))
      >>> model = rec2pm_jax.train(config, dataset, "run", callbacks=[note])
      workdir ...
      >>> seen
      [('validation', 2), ('checkpoint', 2)]
    """
    opened = [open_tracker(one) if isinstance(one, str) else one for one in trackers]
    config, observers = fit_to_data(config, dataset), Observers(callbacks, opened)
    method = make_method(config, dataset.num_items)
    train_and_evaluate(config, dataset, method, workdir, observers=observers)
    return load(workdir, dataset.path)


def evaluate(
    model: Recommender | str | Path,
    dataset: Dataset | None = None,
    *,
    split: str = "test",
    memory: str | None = None,
    max_users: int | None = None,
    measures: Measures | None = None,
) -> Evaluation:
    """Rank the full catalogue for every held-out event and compute ranking metrics.

    Args:
      model: of `train` or `load`, or the workdir of a training run.
      dataset: the dataset the model was trained on; a workdir knows its own.
      split: "test" or "validation".
      memory: "overwrite", "append" or "one_time"; None for the memory that the method serves with.
      max_users: size of a fixed pseudo-random subset of the users; None for all of them.
      measures: cutoffs, lists and slices, see `evaluation.spec.Measures`.

    Returns:
      Ranks and metrics; `metrics["ndcg@10"]` is a fraction of 1, averaged over users.

    Raises:
      UserError: no dataset is given, no user has an event to predict, or scores are not finite.

    Example:
      >>> import rec2pm_jax
      >>> evaluation = rec2pm_jax.evaluate("runs/demo/rec2pm", max_users=20)
      >>> 0 <= evaluation.metrics["ndcg@10"] <= 1
      True
    """
    if not isinstance(model, Recommender):
        config, params, meta = load_quietly(model)
        path = None if dataset is None else dataset.path
        dataset = open_training_data(path, model, meta)
        model = make_recommender(config, params, dataset)
    elif dataset is None:
        raise UserError("evaluate() of a loaded model needs its dataset: evaluate(model, dataset).")
    measures = measures or Measures()
    spec = EvalSpec(split, memory=memory, max_users=max_users, measures=measures)
    return evaluate_method(model.method, model.params, dataset, spec)


def load(
    workdir: str | Path, data: str | Path | None = None, checkpoint: str = "best"
) -> Recommender:
    """Load a trained model to update memories and recommend; see `stream.recommender`.

    Args:
      workdir: of a training run, finished or not.
      data: the prepared dataset it was trained on; by default where the run says it lies.
      checkpoint: best (by validation NDCG@10) or latest.

    Raises:
      UserError: no readable checkpoint, no dataset, or a dataset with another content.

    Example:
      >>> import rec2pm_jax
      >>> model = rec2pm_jax.load("runs/demo/rec2pm")
      >>> events = [{"item": "BANANAS", "time": "2018-01-02"}]
      >>> user = model.observe(model.new_user(), events)
      >>> [item for item, title, score in model.recommend(user, k=2, time="2018-01-05")]
      ['...', '...']

      Users of the dataset are known with their events there:

      >>> user = model.user(model.dataset.user(0))
      >>> user.events > 0
      True
    """
    return load_recommender(workdir, data, checkpoint)


def _write_columns(frame: Any, names: list[str], directory: Path) -> Path:
    """Write the named columns of any kind of frame as a Parquet file and return its path."""
    columns = {}
    for name in names:
        try:
            column = frame[name]
        except (KeyError, pl.exceptions.ColumnNotFoundError):
            known = [str(name) for name in getattr(frame, "columns", None) or frame]
            raise UserError(
                f"events has no column {name!r}; its columns are {', '.join(known)}."
                f"{nearest(name, known)} Name columns with user_column, item_column, time_column."
            ) from None
        if not isinstance(column, pl.Series):
            values = np.asarray(column)
            column = pl.Series(name, values.tolist() if values.dtype == object else values)
        columns[name] = column
    file = directory / "events.parquet"
    pl.DataFrame(columns).write_parquet(file)
    return file
