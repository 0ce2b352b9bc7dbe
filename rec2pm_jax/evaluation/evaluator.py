"""Evaluate one method with one kind of memory: ranks, metrics and the swap test."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from rec2pm_jax.data.splits import SplitRule, bound_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.catalogue import Reader, catalogue_of
from rec2pm_jax.evaluation.histories import EvaluationData, Histories
from rec2pm_jax.evaluation.measures import measure
from rec2pm_jax.evaluation.memory_kinds import resolve_memory
from rec2pm_jax.evaluation.memory_states import choose_swap_donors, swap_parts, take_states
from rec2pm_jax.evaluation.processes import Gathering
from rec2pm_jax.evaluation.record import Evaluation, dataset_name
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import (
    Rows,
    Targets,
    distinct_reads,
    final_rows,
    plan_rows,
    select_targets,
)
from rec2pm_jax.methods.codec import check_format
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.state_format import state_format
from rec2pm_jax.typing import Params, Readout, State


def evaluate(method: Method, params: Params, dataset: EvaluationData, spec: EvalSpec) -> Evaluation:
    """Predict every target from the user's whole history before it and rank the full catalogue.

    In a job of several processes every process makes this call. Each reads a share of the users, and
    all return the same evaluation of all users.

    Args:
      method: the method to evaluate.
      params: its parameters on one device of this process. A sharded item table may be spread over all
        devices of the job, see `training.checkpoint.load_for_inference`.
      dataset: a prepared dataset, see `data.dataset.open_dataset`.
      spec: split, memory, users and further conditions.

    Returns:
      The ranks and metrics; `Evaluation.record` makes them a JSON record.

    Raises:
      UserError: the method has no such memory, the memory format is unknown, no user has targets,
        targets were training events under the protocol of `config.data`, the dataset lacks a target
        type, there are fewer users than processes, or scores are not finite.

    Example, with untrained parameters (for a trained model see `training.loop.train_and_evaluate`):

    >>> import tempfile
    >>> import jax
    >>> from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
    >>> from rec2pm_jax.data.dataset import open_dataset
    >>> from rec2pm_jax.data.options import PrepareOptions
    >>> from rec2pm_jax.data.prepare import prepare
    >>> from rec2pm_jax.methods.registry import make_method
    >>> directory = tempfile.TemporaryDirectory()
    >>> _ = prepare(PrepareOptions("synthetic", directory.name + "/data", progress=False,
    ...     synthetic_users=20, synthetic_items=60, synthetic_length=40))
    >>> dataset = open_dataset(directory.name + "/data")
    >>> config = Config(data=DataConfig(segment=5), model=ModelConfig(layers=1, dim=8),
    ...     method=MethodConfig(name="recent"))
    >>> method = make_method(config, dataset.num_items)
    >>> params = jax.jit(method.init)(jax.random.key(0))
    >>> result = evaluate(method, params, dataset, EvalSpec("test"))
    >>> result.users, len(result.rank), sorted(result.metrics)
    (20, 200, ['hr@1', 'hr@10', 'hr@50', 'mrr', 'ndcg@10', 'ndcg@50'])
    >>> directory.cleanup()
    """
    began = time.perf_counter()
    config = method.config
    memory = resolve_memory(method, spec.memory)
    check_format(spec.memory_format)

    types = spec.target_types or config.loss.target_types
    rule = bound_rule(config.data, dataset, spec.protocol or "", types)
    selection = select_targets(dataset, rule, spec.split, spec.max_users, spec.seed, shared=True)
    histories, targets = selection.histories, selection.targets
    known = spec.knows_request_time(histories, default=config.reads_times)
    trained_with = bound_rule(config.data, dataset, target_types=config.loss.target_types)
    _check_unseen(dataset, histories, targets, trained_with)
    if spec.corrupt is not None:
        histories = spec.corrupt(histories, targets)
    rows = plan_rows(targets, method, spec.max_segments, shared=known or not config.reads_times)
    catalogue = catalogue_of(method, params)
    reader = catalogue.reader(histories)
    states = reader.compute_memories(rows, memory, spec.batch_size, spec.memory_format)

    def read_with(reader: Reader, states: State) -> Readout:
        return reader.read(
            rows,
            states,
            batch_size=spec.batch_size,
            request_time_known=known,
            request_time=rule.request_time(spec.split),
        )

    def rank(readout: Readout) -> np.ndarray:
        return catalogue.rank(histories, targets, readout, rule.mask_seen)

    readout = read_with(reader, states)
    ranks, lists = rank(readout), None
    if spec.measures.lists:
        first = distinct_reads(targets)
        chosen = Targets(*(field[first] for field in targets))
        part = jax.tree.map(lambda a: a[first], readout)
        k = max(spec.measures.list_cutoffs)
        lists = catalogue.recommend(histories, chosen, part, k, rule.mask_seen)
    pool = _pool_states(selection.users, rows, states)
    swapped = {}
    for part, given in _swap(pool).items() if spec.swap else ():
        if jax.process_count() > 1:  # states of users whose histories other processes have
            reader = catalogue.reader(histories, np.asarray(given.exact.items))
        swapped[part] = rank(read_with(reader, given))
    measured = measure(dataset, rule, selection, ranks, lists, spec.measures)
    by_target = Gathering(selection.users[targets.user], targets.event)
    return Evaluation(
        method=config.method.name,
        memory=memory,
        backbone=config.model.backbone,
        dataset=dataset_name(dataset.info),
        data_hash=dataset.content_hash,
        split=spec.split,
        protocol=spec.protocol or config.data.protocol,
        target_types=types,
        request_time_known=known and config.reads_times,
        swapped_ranks=by_target.gather(swapped),
        skipped_users=selection.skipped,
        **measured,
        wall_s=time.perf_counter() - began,
        **_measure_states(method, pool.rows, pool.states, spec.memory_format),
    )


class _Pool(NamedTuple):
    """Rows of the users of all processes, with their states.

    Attributes:
      rows: users are indices in the dataset; without targets.
      states: numpy leaves, a row for each of `rows`.
      mine: which of them this process has, int [n] or a slice.
    """

    rows: Rows
    states: State
    mine: Any


def _pool_states(users: np.ndarray, rows: Rows, states: State) -> _Pool:
    """Bring the states of all processes together, as donors and statistics are those of all users.

    Args:
      users: int64 [U], the users of this process, indices in the dataset.
      rows, states: of these users.
    """
    nothing = np.empty(0, np.int64)
    own = rows._replace(user=users[rows.user], target_row=nothing, target_column=nothing)
    together = Gathering(*own[:5])
    fields, states = together.gather((own[:5], states))
    return _Pool(Rows._make([*fields, *own[5:]]), states, together.mine)


def _swap(pool: _Pool) -> dict[str, State]:
    """Return what `swap_parts` returns for the rows of this process; {} if there are no donors."""
    donors = choose_swap_donors(pool.rows)
    if donors is None:
        return {}
    parts = swap_parts(pool.states, donors)
    return {part: take_states(states, pool.mine) for part, states in parts.items()}


def _check_unseen(
    dataset: EvaluationData, histories: Histories, targets: Targets, trained_with: SplitRule
) -> None:
    """Raise UserError if a target was a training event under the protocol of training."""
    trained_end = trained_with.train_ends(dataset.lengths)[histories.users]
    leaked = int((targets.event < trained_end[targets.user]).sum())
    if leaked:
        raise UserError(
            f"{leaked} targets were training events under config.data.protocol={trained_with.name}; "
            "evaluate with that protocol, or train with this one."
        )


def _measure_states(
    method: Method, rows: Rows, states: State, memory_format: str
) -> dict[str, Any]:
    """Return the bytes per user, and the variance of the final memories between users."""
    form = state_format(method, memory_format)
    capacity = states.memory[0].nbytes if memory_format == "float32" else form.memory_bytes
    final = final_rows(rows)
    figures: dict[str, Any] = {
        "state_bytes_per_user": capacity + form.exact_bytes,
        "state_bookkeeping_bytes": states.groups[0].nbytes + states.segments[0].nbytes,
        "state_used_bytes": None,
        "memory_variance": None,
    }
    if capacity and len(final):
        memories = states.memory[final].astype(np.float64)
        figures["memory_variance"] = float(memories.var(axis=0).mean())
        if method.memory_kind == "append":
            groups = states.memory.shape[1] // method.config.method.slots
            used = float(states.groups[final].mean() * capacity / groups)
            figures["state_used_bytes"] = used + form.exact_bytes
    return figures
