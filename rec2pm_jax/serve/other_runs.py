"""Other runs on the dataset of the served model, which read the histories that a page knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve.known_events import KnownHistory
from rec2pm_jax.serve.views import Column, describe_items
from rec2pm_jax.stream.lines.events import RawTime
from rec2pm_jax.stream.load import load_recommender
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.users.user_state import UserState

MAX_STATES = 256  # users whose states are kept, per run


class _ReadState(NamedTuple):
    """Attributes:
    history: the events that the user has had.
    user: the state after them.
    """

    history: KnownHistory
    user: UserState


class OtherRun:
    """A run beside the served one: its users get the same events.

    Attributes:
      name: of its column.
      recommender: the run's model.
    """

    def __init__(self, name: str, recommender: Recommender):
        """Start with no users; arguments are the attributes."""
        self.name, self.recommender = name, recommender
        self._states: OrderedDict[str, _ReadState] = OrderedDict()

    def read(self, name: str, history: KnownHistory, k: int, time: RawTime = None) -> Column:
        """Return what the run recommends to a user with a given history.

        Events of items that were unknown to the service are left out.

        Args:
          name: raw id of the user.
          history: what is known of the user's events; a note says if it is not all.
          k, time: as in `Recommender.recommend`.

        Raises:
          RejectedInput, UserError: as `Recommender.observe` and `Recommender.recommend`.
        """
        old = self._states.pop(name, _ReadState(KnownHistory([], 0), self.recommender.new_user()))
        count = len(old.history.events)
        if old.history != history._replace(events=history.events[:count]):
            old, count = _ReadState(KnownHistory([], 0), self.recommender.new_user()), 0
        new = [event._asdict() for event in history.events[count:] if event.item is not None]
        user, _ = self.recommender.observe(old.user, new, skip_unknown=True)
        self._states[name] = _ReadState(history, user)
        if len(self._states) > MAX_STATES:
            self._states.popitem(last=False)
        items = self.recommender.recommend(user, k, time=time)
        column: Column = {"name": self.name, "items": describe_items(items)}
        if history.first:
            known, total = len(history.events), len(history.events) + history.first
            column["note"] = f"Reads the newest {known} of {total} events; no older ones are kept."
        return column


def load_other_runs(workdirs: Sequence[str], served: Recommender) -> list[OtherRun]:
    """Load the runs of `--compare`.

    Args:
      workdirs: of training runs.
      served: the served model, with the dataset that the runs must share.

    Raises:
      UserError: a run cannot be loaded, or was trained on another dataset.
    """
    runs = []
    for workdir in dict.fromkeys(workdirs):
        if served.dataset is None:
            raise UserError(f"--compare={workdir}: the served model has no dataset to compare on.")
        try:
            run = load_recommender(workdir, served.dataset.path)
        except UserError as error:
            raise UserError(f"--compare={workdir}: {error}") from error
        runs.append(OtherRun(column_name(workdir, run), run))
    return runs


def column_name(workdir: str, run: Recommender) -> str:
    """Return what the column of a run is called."""
    method = run.method.config.method.name
    what = "full history" if method == "full" else method
    return f"{what} ({Path(workdir).name})"
