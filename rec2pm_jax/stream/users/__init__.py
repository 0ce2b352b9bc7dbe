"""A user between events: as an immutable value, as changed in place, and all users of a process."""
