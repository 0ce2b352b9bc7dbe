"""Train a method, validate it on the way, and continue a run that was stopped exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import jax

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.evaluation.validation import validate
from rec2pm_jax.lock import alone_in
from rec2pm_jax.methods.method import Method
from rec2pm_jax.os_errors import CANNOT_WRITE
from rec2pm_jax.training.checkpoint_store import cannot_write_error
from rec2pm_jax.training.item_content import training_content
from rec2pm_jax.training.observers import Observers
from rec2pm_jax.training.run_checks import check_features
from rec2pm_jax.training.training_run import EvaluateFn, Summary, TrainingData, TrainingRun
from rec2pm_jax.typing import Params


def train_and_evaluate(
    config: Config,
    dataset: Dataset,
    method: Method,
    workdir: str | Path,
    evaluate_fn: EvaluateFn | None = None,
    profile: str = "",
    observers: Observers | None = None,
) -> Summary:
    """Train `method` on `dataset`; a workdir that holds part of this run is continued exactly.

    If logs were appended to the dataset since then, the item table grows. Training continues from
    the checkpoint's step with the batches that the grown data have there, and validation starts
    anew. See `train_on` for what is written and raised.

    Args:
      config: the whole configuration.
      dataset: a prepared dataset, see `data.dataset.open_dataset`.
      method: the method to train, see `methods.registry.make_method`.
      workdir: a new directory, or one of the same run.
      evaluate_fn: params -> validation metrics, "ndcg@10" among them; None for
        `evaluation.validation.validate` on `config.train.eval_users` users.
      profile: directory for a trace of a few steps, see `StepTrace`; empty for none.
      observers: callbacks and trackers.

    Returns:
      The contents of `train/summary.json`.

    Raises:
      UserError: as `train_on`, or the data lack what the model reads, see `check_features`.

    Example:

    >>> import contextlib, io, tempfile
    >>> from rec2pm_jax.config import DataConfig, MethodConfig, ModelConfig, TrainConfig
    >>> from rec2pm_jax.data.dataset import open_dataset
    >>> from rec2pm_jax.data.options import PrepareOptions
    >>> from rec2pm_jax.data.prepare import prepare
    >>> from rec2pm_jax.methods.registry import make_method
    >>> directory = tempfile.TemporaryDirectory()
    >>> _ = prepare(PrepareOptions("synthetic", directory.name + "/data", progress=False,
    ...     synthetic_users=20, synthetic_items=60, synthetic_length=40))
    >>> dataset = open_dataset(directory.name + "/data")
    >>> config = Config(
    ...     data=DataConfig(segment=5, segments=2), model=ModelConfig(layers=1, dim=8),
    ...     method=MethodConfig(name="recent"), train=TrainConfig(steps=2, batch_size=4))
    >>> method = make_method(config, dataset.num_items)
    >>> with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    ...     summary = train_and_evaluate(config, dataset, method, directory.name + "/run")
    >>> summary["stopped_by"], summary["steps"], summary["best_step"]
    ('steps', 2, 2)
    >>> directory.cleanup()
    """

    def validate_default(params: Params) -> Mapping[str, float]:
        return validate(method, params, dataset, max_users=config.train.eval_users)

    check_features(config, dataset)
    content = training_content(config, dataset)
    batches = train_iterator(
        dataset,
        config.data,
        config.train.batch_size,
        config.train.seed,
        jax.process_index(),
        jax.process_count(),
        config.loss.target_types,
    )
    with contextlib.closing(batches):  # ends the thread that reads ahead
        data = TrainingData(
            batches,
            dataset.content_hash,
            str(Path(dataset.path).absolute()),
            dataset.info.get("grown_from", ()),
            content,
        )
        evaluate_fn = evaluate_fn or validate_default
        return train_on(config, data, method, workdir, evaluate_fn, profile, observers)


def train_on(
    config: Config,
    data: TrainingData,
    method: Method,
    workdir: str | Path,
    evaluate_fn: EvaluateFn,
    profile: str = "",
    observers: Observers | None = None,
) -> Summary:
    """Train on batches of any origin until the steps or the patience are used up.

    Writes under `workdir`: `checkpoints/` (see `training.checkpoint`), `train/train.jsonl` (means
    since the row before), `train/validation.jsonl`, `train/tensorboard/` and, once the run is
    complete, `train/summary.json`.

    Args:
      config: the whole configuration; sizes of the batches must fit it.
      data: the batches, and what identifies the data.
      method: the method to train.
      workdir: a new directory, or one of the same run.
      evaluate_fn: params -> validation metrics, "ndcg@10" among them.
      profile: directory for a trace of a few steps, see `StepTrace`; empty for none.
      observers: callbacks and trackers.

    Returns:
      The contents of `train/summary.json`.

    Raises:
      UserError: another process trains in the workdir, it belongs to another run, none of its
        checkpoints is readable or one cannot be written; a loss or gradient is not finite; a bucket
        of a sharded table overflows.
      Preempted: SIGTERM was received or a callback asked to stop; the last step is saved.
    """
    workdir = Path(workdir)
    try:
        # The processes of a job share the workdir, so one of them holds the lock for all.
        is_main = jax.process_index() == 0
        with alone_in(workdir / "train") if is_main else contextlib.nullcontext():
            return _train(
                TrainingRun(config, data, method, workdir, evaluate_fn, profile, observers)
            )
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise cannot_write_error(Path(error.filename or workdir), error) from error


def _train(run: TrainingRun) -> Summary:
    """Take all steps of a run and close it."""
    try:
        run.start()
        while run.stop_reason is None:
            run.take_step()
        summary = run.finish()
    except BaseException:
        # The files of a full disk cannot be closed either: the first error is the one to report.
        with contextlib.suppress(Exception):
            run.close()
        raise
    run.close()
    return summary
