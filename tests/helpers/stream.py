"""Models with random parameters over a small prepared log, and the offline answer to each."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import grain
import jax
import numpy as np
import polars as pl

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.data.dataset import Dataset, open_dataset
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.memory_states import fold_memories
from rec2pm_jax.evaluation.ranking import read_targets
from rec2pm_jax.evaluation.targets import Targets, plan_rows
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import config_hash, make_method
from rec2pm_jax.nn.item_features import ItemContent
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.training.checkpoint import Checkpoints
from rec2pm_jax.training.optimizer import make_optimizer
from rec2pm_jax.training.step import init_train_state
from rec2pm_jax.typing import Params
from tests.helpers.data import prepare_log, random_log

SEGMENT, RECENT = 5, 2


def make_config(
    name: str = "rec2pm",
    memory: str = "overwrite",
    backbone: str = "sasrec",
    bias: str = "none",
    types: int = 0,
    times: bool = False,
) -> Config:
    """Return a tiny configuration: segments of `SEGMENT` events, `RECENT` raw ones, 2 slots of 8.

    Models with a time bias, or with `times`, read times. The exact memory has 4 entries.
    """
    return from_dict(
        {
            "data": {"segment": SEGMENT, "segments": 3, "recent": RECENT},
            "model": {
                "backbone": backbone,
                "layers": 2,
                "heads": 2,
                "dim": 8,
                "relative_bias": bias,
                "use_times": times or bias == "position_time",
                "event_types": types,
            },
            "method": {
                "name": name,
                "memory": memory,
                "slots": 2,
                "max_groups": 3,
                "exact_entries": 4,
            },
        }
    )


def make_data(directory: Path, categories: int = 0) -> Dataset:
    """Return a log of 12 users with 4 to 60 events over 30 items, two event types and many ties.

    It lasts four days.

    Args:
      directory: to write to.
      categories: item i<n> is in category c<n % categories>; 0: in none.
    """
    log = random_log(users=12, items=30, events=300, seed=3)
    log = log.with_columns(pl.col("timestamp") * 9001)
    options = {}
    if categories:
        rows = {"id": [f"i{n}" for n in range(30)]}
        rows["category"] = [f"c{n % categories}" for n in range(30)]
        options["items"] = str(directory / "items.csv")
        pl.DataFrame(rows).write_csv(options["items"])
    prepare_log(log, directory, type_column="kind", **options)
    return open_dataset(directory / "data")


@functools.cache
def random_params(method: Method) -> Params:
    return with_random_zeros(jax.jit(method.init)(jax.random.key(1)))


def with_random_zeros(params: Params) -> Params:
    """Return fresh parameters with random weights where they start at 0, so that they matter."""
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda a: a if np.any(a) else rng.normal(0, 0.3, a.shape).astype(a.dtype), params
    )


def make_recommender(dataset: Dataset, config: Config) -> Recommender:
    method = make_method(config, dataset.num_items)
    return Recommender(method, random_params(method), Catalogue.from_dataset(dataset, config))


def save_run(
    workdir: Path, dataset: Dataset, config: Config, content: ItemContent | None = None
) -> None:
    """Write a workdir with one checkpoint of the random parameters, best and latest at once."""
    method = make_method(config, dataset.num_items)
    state = init_train_state(method, make_optimizer(config.optim, 10), 0, content)
    state = state._replace(params=state.params | random_params(method))
    iterator = iter(grain.MapDataset.source([0]).to_iter_dataset())
    checkpoints = Checkpoints(workdir, 1)
    checkpoints.save(
        state,
        iterator,
        {
            "step": 1,
            "best_step": 1,
            "num_items": dataset.num_items,
            "config": to_dict(config),
            "config_hash": config_hash(config),
            "data_hash": dataset.content_hash,
            "data_path": str(dataset.path),
        }
        | ({} if content is None else {"item_vector_length": content.vectors.shape[1]}),
    )
    checkpoints.close()


def raw_events(dataset: Dataset, index: int, stop: int | None = None) -> list[dict]:
    """Return the first `stop` events of a user as a stream would bring them."""
    sequence = dataset.sequence(index)
    return [
        {
            "item": dataset.items.raw_ids[sequence.ids[i]],
            "time": int(sequence.times[i]) + dataset.time_origin,
            "type": dataset.event_types[sequence.types[i] - 1],
        }
        for i in range(len(sequence.ids))[:stop]
    ]


def offline_logits(
    recommender: Recommender,
    dataset: Dataset,
    positions: list[tuple[int, int]],
    time_known: bool = True,
) -> np.ndarray:
    """Return evaluation's logits [T, V] for targets (user, n), each predicted from events [0, n)."""
    method, params = recommender.method, recommender.params
    histories = load_histories(dataset, np.arange(dataset.num_users))
    user, position = np.array(positions, np.int64).T
    targets = Targets(user, position, position)
    rows = plan_rows(targets, method, 0, shared=time_known)
    states = fold_memories(method, params, histories, rows, batch_size=4)
    readout = read_targets(
        method, params, histories, rows, states, batch_size=4, request_time_known=time_known
    )
    return np.asarray(method.score(params, readout))


class ListSource:
    """Lines that are all available from the start; see `stream.lines.sources.Source`."""

    def __init__(self, lines: Iterable[bytes]):
        self.lines, self.next, self.done = list(lines), 0, False

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        taken = self.lines[self.next : self.next + max_lines]
        self.next += len(taken)
        self.done = not taken
        return taken

    def positions(self) -> dict[str, bytes]:
        return {}

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass
