"""Preparation: from the interactions of a source to a dataset directory.

A row of a log passes these stages. Each one leaves its result in the workspace, a temporary directory
beside the target. So the same command resumes after a kill.

    1  encode.py       users, items and types get numbers; columns of integers on disk
    2  partition.py    filters (`filters.py`), item ids, and partitions of users that fit in memory
    3  order.py        each partition by user and time, equal times by the rule for ties
    4  write.py        record files, users.parquet, items.parquet, dataset.json (`describe.py`)

`run.py` runs them. The other commands use the same stages:

    appending.py       append a log to a dataset, as a delta
    compaction.py      rewrite a dataset with deltas as plain shards
    beam.py            the stages as Apache Beam pipelines (imported only where Beam is used)
    beam_workers.py    what their workers do

    workspace.py       the temporary directory
    column_files.py    columns of numbers on disk
    identity.py        options and files that decide whether a killed preparation can be resumed
    limits.py          limits of the format on disk
    log_hash.py        by which an appended log is recognized
    memory.py          how many events may be held at a time
    dropped_events.py  events that filters drop, kept for logs that are appended later

>>> import tempfile
>>> from rec2pm_jax.data.options import PrepareOptions
>>> with tempfile.TemporaryDirectory() as directory:
...     options = PrepareOptions("synthetic", f"{directory}/data", progress=False)
...     info, written = prepare(options)
>>> print(summary(info).splitlines()[0])
synthetic (item): 4,000 users, 400 items, 320,000 events
"""

from rec2pm_jax.data.prepare.appending import append, list_logs, undo_append
from rec2pm_jax.data.prepare.compaction import compact
from rec2pm_jax.data.prepare.describe import summary
from rec2pm_jax.data.prepare.run import prepare

__all__ = ["append", "compact", "list_logs", "prepare", "summary", "undo_append"]
