"""Users from their records and states in a store."""

from __future__ import annotations

from collections.abc import Mapping

from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import IN_STORE, MutableUser


def read_states(store: Store, form: RecordFormat, users: Mapping[str, MutableUser]) -> None:
    """Give users their memories, where these are in the store and were not read yet.

    Args:
      store: the one that the users were read from.
      form: of its records.
      users: by id.

    Raises:
      UserError: as `RecordFormat.decode_state`.
    """
    names = [name for name, user in users.items() if user.memory is IN_STORE]
    for name, state in zip(names, store.get_states(names), strict=True):
        form.decode_state(name, users[name], state)
