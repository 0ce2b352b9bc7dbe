"""What the routes need of the process: the engine's thread, the limits, and what is counted."""

from __future__ import annotations

import dataclasses
import time

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.serve.admission import Admission
from rec2pm_jax.serve.bodies import EventsBody
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.metrics import ServiceMetrics
from rec2pm_jax.serve.swap import Swapper
from rec2pm_jax.serve.work import Applied
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.recommender import Recommender

STUCK_S = 10.0  # without a turn of the engine's thread, the service counts as stuck


@dataclasses.dataclass
class Service:
    """One process that serves.

    Attributes:
      thread: owns the engine.
      admission: what may wait.
      metrics: counts and times requests.
      max_body_bytes: of one body.
      swapper: changes to a new checkpoint; None if the service cannot.
    """

    thread: EngineThread
    admission: Admission
    metrics: ServiceMetrics
    max_body_bytes: int = 1 << 20
    swapper: Swapper | None = None

    @property
    def recommender(self) -> Recommender:
        """The model that is served now."""
        return self.thread.driver.engine.recommender

    @property
    def rules(self) -> ValueRules:
        """How ids and times are read."""
        return self.recommender.catalogue.rules

    @property
    def worker(self) -> Worker:
        """Which part of the users this process serves."""
        return self.thread.driver.engine.options.worker

    async def apply(self, body: EventsBody) -> Applied:
        """Apply the events of a body; the result has their places in the body."""
        self.metrics.rejected.update(error.reason for _, error in body.rejected)
        applied = Applied(0, [], True)
        if body.events:
            applied = await self.thread.apply(body.events)
        refused = [(body.places[place], error) for place, error in applied.rejected]
        rejected = sorted([*refused, *body.rejected], key=lambda row: row[0])
        return applied._replace(rejected=rejected)

    def health(self) -> tuple[bool, str]:
        """Return whether the service works, and one sentence."""
        if self.thread.failure is not None:
            return False, self.thread.failure
        silent = time.monotonic() - self.thread.turned_at
        if silent > STUCK_S:
            return False, f"The engine has not answered for {silent:.0f} s."
        return True, "ok"
