"""Change to a new checkpoint and its rebuilt store while the service runs.

The new engine is opened, compiled, and brought up to date from the journal beside the old one. Then the
engine's thread commits the old one, reads the last events from the journal, and continues with the new
one. Requests wait for that moment, and none is lost. Anything that fails leaves the old one serving.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.opening import Opened, open_service, resolve
from rec2pm_jax.stream.opening import ModelPaths
from rec2pm_jax.stream.options import EngineOptions


class SwapRefused(Exception):
    """The change was not made, and the old model stays; the message says why."""


class Swapper:
    """Makes one change at a time.

    Attributes:
      address: of the store that is served.
      swaps: how many changes were made.
      items: the item table that is served.
    """

    def __init__(
        self,
        thread: EngineThread,
        paths: ModelPaths,
        store: str,
        opened: Opened,
        options: EngineOptions,
    ):
        """Keep what the flags say.

        Args:
          store: address of the store, which may be a symbolic link that changes.
          opened: what is served now.
        """
        self._thread, self._paths, self._flag, self._options = thread, paths, store, options
        self.address, self.swaps, self._is_busy = opened.address, 0, False
        self.items = opened.items  # no more of it: a change releases the model before

    async def swap(self, address: str = "") -> dict[str, Any]:
        """Change to the newest checkpoint of the workdir.

        Args:
          address: of its store; "": where --store leads to now.

        Returns:
          What was done, as JSON has it.

        Raises:
          SwapRefused: the change was not made.
        """
        if self._is_busy:
            raise SwapRefused("A change to a new checkpoint is under way: wait for it.")
        self._is_busy = True
        try:
            return await self._swap(resolve(address or self._flag))
        except UserError as error:
            raise SwapRefused(f"{error} The old model stays.") from error
        finally:
            self._is_busy = False

    async def _swap(self, address: str) -> dict[str, Any]:
        journal = self._thread.journal
        if journal is None:
            raise SwapRefused(
                "Events since the new store was rebuilt are read from the journal: start the service "
                "with --journal=DIRECTORY."
            )
        if self._thread.driver.engine.recommender.method.spans_devices:
            raise SwapRefused(
                "The item table is divided over devices, which do not hold two of them: start another "
                "service with the new checkpoint."
            )
        if address == self.address:
            raise SwapRefused(
                f"The store {address} is the one that is served: rebuild another with "
                "launch.rebuild_memory, and name it or let --store lead to it."
            )
        opened = await asyncio.to_thread(
            open_service, self._paths, address, self._options, journal, create=False
        )
        try:
            old, last = await self._thread.call(
                lambda driver: self._thread.switch(opened.engine, opened.items.poll)
            )
        except Exception:  # not a cancellation: the thread may serve the new store then
            with contextlib.suppress(Exception):
                opened.engine.store.close()
            raise
        await asyncio.to_thread(old.close)
        self.address, self.swaps, self.items = opened.address, self.swaps + 1, opened.items
        identity = opened.engine.recommender.identity
        replayed = opened.replayed + last
        return {"model": identity.model, "store": opened.address, "replayed": replayed}
