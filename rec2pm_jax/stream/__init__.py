"""Serve a trained model: memories follow a stream of events, and requests are answered from them.

An event passes through these files, from a line of input to the store:

    lines/sources.py            read whole lines from a file, a growing directory or a pipe
      lines/kafka/source.py       or from the partitions of a topic that this worker owns
    lines/events.py             parse a line into an `Event`
    lines/requests.py           or into a `Request` with filters
    runner.py                   the loop: schedule every step below
    feed.py                     read lines ahead; requests overtake events of others that wait
    engine.py                   find the user, check the event, append it to the user's pending events
      catalogue.py                raw ids -> item ids, times -> seconds since the time origin
      users/mutable_user.py       a user in the process: encoded memory and
      users/pending.py            pending events, in their stored form
      users/user_cache.py         all users in the process; the others are read from the store
      compute/histories.py        or from the dataset, if the store lacks them
    compute/update_queue.py     collect users with a full segment; a thread computes new memories
      compute/updater.py          decode memories, update them, encode them
      compute/batches.py          call the model in a few fixed batch shapes
      compute/compiled.py         the model, compiled
    stores/commit_writer.py     snapshot the changed users; a thread writes them
      stores/record.py            a user as bytes: a record, and the state
      stores/reading.py           states are read when an update or a request needs them
      stores/base.py              the store: records and input positions, in one transaction

A request takes the same way up to the engine, and then:

    plan.py, search.py          look up what filters name; lists of items for top-k
    engine.py                   run the missing updates of this user only
    compute/session_cache.py    read from the keys and values of the user's last request, if kept
      compute/batches.py          or read everything anew, and rank the catalogue
    catalogue.py                return ids to raw ids and titles
    lines/output.py             write the answer

`recommender.py` is also the public Python API: the same model without a store, one call at a time.
`load.py` builds it from a training run. `rebuild.py` fills a store from prepared histories, and
`latency.py` times one user's update and read. `bulk/` recommends to all users at once, into files.
`export/` writes programs that run without this package, and the vectors (`compute/vectors.py`) of all
users of a dataset or a store (`all_users.py`).
"""
