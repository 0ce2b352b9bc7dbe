"""Rank the catalogue for many users, batch by batch, and write the best items of each."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.mesh_method import MeshMethod
from rec2pm_jax.methods.method import Method
from rec2pm_jax.nn.catalogue.filters import ItemFilter
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.bulk.files import Answers, OutputFolder
from rec2pm_jax.stream.bulk.users import UserSource
from rec2pm_jax.stream.compute import batches, compiled
from rec2pm_jax.stream.lines.requests import Filters
from rec2pm_jax.stream.plan import ask
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.search import Asked, Search
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.training.partition import AXIS, make_mesh
from rec2pm_jax.typing import Array, Events, Params, State

Found = tuple[Array, Array]  # scores float32 [B, k], ids int32 [B, k]


class BulkOptions(NamedTuple):
    """How much is done at a time, none of which changes the rows.

    Attributes:
      batch_size: users of a batch on one device.
      devices: how many devices share the users; 0 for all. With a sharded item table it is those that
        the table is spread over.
      users_per_file: users of a file of the output.
      form: one of `files.FORMATS`.
    """

    batch_size: int = 64
    devices: int = 1
    users_per_file: int = 16_384
    form: str = "parquet"


def recommend_all(
    source: UserSource,
    names: Sequence[str],
    search: Search,
    time: int | None,
    folder: Path,
    manifest: dict[str, Any],
    options: BulkOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Write what `Recommender.recommend` returns for each user; resume if it was stopped.

    Args:
      source: of users; a name that it lacks is a user without events.
      names: whom to recommend to, in the order of the output.
      search: what is asked for all of them.
      time: of the request, seconds since 1970, or None.
      folder: see `files.OutputFolder`.
      manifest: what determines the rows; names and sizes of files are added.
      options: how much is done at a time.
      progress: called with the number of users that are done.

    Returns:
      The complete manifest.

    Raises:
      UserError: scores are not finite, a filter needs what the store does not keep, a file cannot be
        written, or the folder was begun with other arguments.
    """
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    manifest = manifest | {"users_hash": digest, "users_per_file": options.users_per_file}
    items = source.recommender.catalogue.items
    ranker = _Ranker(source, search, time, options)
    output = OutputFolder(folder, manifest, items, options.form)
    for number, begin in enumerate(range(0, len(names), options.users_per_file)):
        part = names[begin : begin + options.users_per_file]
        if not output.has(number):
            done = functools.partial(_report, progress, begin)
            output.write(number, ranker.rank(part, done), search.k)
        progress(begin + len(part))
    return output.finish()


def _report(progress: Callable[[int], None], begin: int, done: int) -> None:
    progress(begin + done)


def describe(model: Recommender, meta: Mapping[str, Any], filters: Filters) -> dict[str, Any]:
    """Return what a manifest says of a model and of filters.

    Args:
      meta: of the model's checkpoint.
      filters: what is left out.
    """
    assert model.dataset is not None, "no dataset"
    identity = model.identity
    return {
        "format_version": 1,
        "git_commit": git_commit(),
        "step": meta["step"],
        "model": identity.model,
        "config_hash": identity.config_hash,
        "data": str(model.dataset.path),
        "data_hash": model.dataset.content_hash,
        "filters": filters.describe(),
    }


class _Ranker:
    """Ranks users in batches of one size, so that one program serves all of them."""

    def __init__(
        self, source: UserSource, search: Search, time: int | None, options: BulkOptions
    ) -> None:
        self._source, self._search, self._time = source, search, time
        model = source.recommender
        self._mesh, shared = None, 1
        if isinstance(model.method, MeshMethod):  # which divides the users itself
            shared = model.method.mesh.size
        elif options.devices != 1:
            used = _find_devices(options.devices)
            self._mesh, shared = make_mesh(used) if len(used) > 1 else None, len(used)
        self._size = options.batch_size * shared
        allowed = search.keep_allowed(model.popular_items[1]).astype(np.int32)
        self._popular = allowed[: search.k]

    def rank(self, names: Sequence[str], progress: Callable[[int], None]) -> Answers:
        """Return the answers of users; the next batch is prepared while one is computed."""
        finished: list[Answers] = []
        waiting: Callable[[], Answers] | None = None
        for begin in range(0, len(names), self._size):
            batch = list(names[begin : begin + self._size])
            started = self._start(batch, self._source.take(batch))
            if waiting is not None:
                finished.append(waiting())
                progress(begin)
            waiting = started
        assert waiting is not None, "there are users"
        return Answers.join([*finished, waiting()])

    def _start(self, names: list[str], users: list[MutableUser]) -> Callable[[], Answers]:
        """Start to rank one batch; return what waits for the result."""
        active = [row for row, user in enumerate(users) if user.events]
        found = None
        if active:
            found = self._search_best([users[row] for row in active])
        return functools.partial(self._collect, names, np.array(active, np.int64), found)

    def _search_best(self, users: list[MutableUser]) -> Found:
        source, model = self._source, self._source.recommender
        padded = users + [users[0]] * (self._size - len(users))
        asked = ask(model.catalogue, self._time, self._search, [user.seen for user in padded])
        events, valid = source.updater.stack_pending(padded)
        k = asked.best_of(self._search.k, model.method.num_items)
        if asked.rule.candidates is None:  # as batches have one shape, no other k is compiled
            k = self._search.k
        arguments = (model.params, model.scored_table, source.updater.stack_states(padded))
        if self._mesh is None:
            return compiled.read_best(
                model.method, k, *arguments, events, cast(Array, valid), asked
            )
        return _read_best_on(self._mesh, model.method, k, *arguments, (events, valid), asked)

    def _collect(self, names: list[str], active: np.ndarray, found: Found | None) -> Answers:
        """Wait for the result of a batch."""
        k = self._search.k
        ids = np.zeros((len(names), k), np.int32)
        scores = np.full((len(names), k), np.nan, np.float32)
        ids[:, : len(self._popular)] = self._popular
        kept = np.zeros(ids.shape, bool)
        kept[:, : len(self._popular)] = True
        popular = np.ones(len(names), bool)
        popular[active] = False
        if found is not None:
            best, items = (np.asarray(x)[: len(active), :k] for x in found)
            batches.check_finite(best, filtered=True)
            width = best.shape[1]
            kept[active] = False
            ids[active, :width], scores[active, :width] = items, best
            kept[active, :width] = best > -np.inf
        return Answers(names, kept.sum(axis=1), ids[kept], scores[kept], popular)


def _find_devices(wanted: int) -> list[jax.Device]:
    devices = jax.devices()
    if wanted > len(devices):
        raise UserError(f"--devices={wanted}, but this process has {len(devices)}; 0 takes all.")
    return devices[: wanted or len(devices)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read_best_on(
    mesh: Mesh,
    method: Method,
    k: int,
    params: Params,
    catalogue: Array,
    state: State,
    window: tuple[Events, Array],
    asked: Asked,
) -> Found:
    """Do as `compiled.read_best`, with the users divided over the devices of a mesh."""

    def body(
        params: Params, catalogue: Array, state: State, window: tuple[Events, Array], asked: Asked
    ) -> Found:
        return compiled.read_best(method, k, params, catalogue, state, *window, asked)

    users: Any = P(AXIS)
    everywhere: Any = P()
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(P(), P(), users, users, Asked(users, ItemFilter(users, everywhere, users))),
        out_specs=(users, users),
        check_vma=False,
    )(params, catalogue, state, window, asked)
