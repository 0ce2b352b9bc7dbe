"""The data room: interaction logs become prepared datasets, and datasets become batches.

    files of a publisher, or your own log
      -> sources/       one file per dataset: reads its layout into `schema.Interactions`
      -> prepare/       filters, numbers, orders and writes: a dataset directory
      -> dataset.py     opens the directory: `Dataset`
      -> splits.py      chooses the events to train on and the events to predict
      -> pipeline.py    training batches

The other files serve these:

    reading/            helpers of the sources: downloads, large files, ids and times
    schema.py           the canonical interactions that every source returns
    split_rules.py      the rules behind the protocols of `splits.py`, with interval_rules.py
    target_events.py    the events that may be targets, by type
    options.py          `PrepareOptions`, the flags of `launch.prepare`
    histories.py        whole user sequences in flat arrays, and the content hash
    record_files.py     user sequences as ArrayRecord files
    deltas.py           a dataset and the logs appended to it, read as one
    event_order.py      the order of a user's events, equal times included
    hashing.py          64-bit hashes that are the same everywhere
    dates.py            dates and times as text
    polars_io.py        plain paths, what polars raises about damaged files, and a Parquet writer
"""
