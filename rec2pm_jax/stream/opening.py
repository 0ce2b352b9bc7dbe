"""From the flags of a command that serves to an engine that is ready."""

from __future__ import annotations

from typing import NamedTuple

import jax

from rec2pm_jax.config import Config
from rec2pm_jax.devices import select_table_devices
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.live_items import LiveItems
from rec2pm_jax.stream.load import load_recommender
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.rebuild import is_rebuilt
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store


class ModelPaths(NamedTuple):
    """Where a model lies.

    Attributes:
      workdir: of its training run.
      data: prepared dataset whose users start with their events there; "" for none.
      checkpoint: best or latest.
      items: table of items; "" for none.
      devices: that a sharded item table is divided over; None or 0 for all.
    """

    workdir: str
    data: str = ""
    checkpoint: str = "best"
    items: str = ""
    devices: int | None = None

    def load(self) -> Recommender:
        """Load the model.

        Raises:
          UserError: see `rec2pm_jax.load` and `select_table_devices`.
        """
        return load_recommender(
            self.workdir, self.data or None, self.checkpoint, self._find_devices
        )

    def _find_devices(self, config: Config) -> list[jax.Device] | None:
        """Return the devices of a sharded table; None for one device, which has sessions then."""
        devices = select_table_devices(config, self.devices)
        return devices if len(devices) > 1 else None


def open_engine(
    paths: ModelPaths, recommender: Recommender, store: Store, options: EngineOptions
) -> tuple[Engine, LiveItems]:
    """Open the engine of a model on a store.

    Args:
      recommender: as `paths.load` returns it.
      options: `known_users` is replaced.

    Raises:
      UserError: the store belongs to another model or is incomplete, or the item table is unusable.
    """
    # A rebuilt store holds all users of its dataset; those it lacks have been forgotten.
    known = not is_rebuilt(store) and bool(paths.data)
    engine = Engine(recommender, store, options._replace(known_users=known))
    items = LiveItems(paths.items, recommender, store)
    engine.replace_items(items.recommender)
    if known and recommender.dataset is not None:
        recommender.dataset.sequence(0)  # read the histories now, not at the first request
    return engine, items
