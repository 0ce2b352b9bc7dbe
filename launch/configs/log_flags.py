"""The flags of `launch.prepare` that say how to read a log of one's own: fields of `PrepareOptions`."""

from __future__ import annotations

from absl import flags

# --append takes these from the dataset unless they are given.
flags.DEFINE_string("user_column", None, "interactions: column of the user; default user.")
flags.DEFINE_string("item_column", None, "interactions: column of the item; default item.")
flags.DEFINE_string("time_column", None, "interactions: column of the time; default timestamp.")
flags.DEFINE_string("type_column", None, "interactions: column of the event type; default none.")
flags.DEFINE_string("order_column", None, "interactions: number that orders events of equal time.")
flags.DEFINE_string("title_column", None, "interactions: column of the item's title.")
flags.DEFINE_string("category_column", None, "interactions: column of the item's category.")
flags.DEFINE_string("items", "", "Table of the items: id, title, category, vector, attributes.")
flags.DEFINE_string("time_unit", None, "interactions: s, ms, us, ns or iso; detected unless given.")
flags.DEFINE_string("time_zone", None, "interactions: zone of times that state none; default UTC.")
flags.DEFINE_string("time_format", None, "interactions: of text times, e.g. '%m/%d/%Y %H:%M'.")
flags.DEFINE_string("separator", None, "interactions: of CSV columns; detected unless given.")
flags.DEFINE_string("id_type", None, "interactions: text, or int, which reads the text 7.0 as 7.")
flags.DEFINE_multi_string("drop", None, "interactions: leave out rows with COLUMN=REGEX.")
flags.DEFINE_multi_string("keep", None, "interactions: leave out rows without COLUMN=REGEX.")
flags.DEFINE_boolean("skip_invalid", False, "interactions: leave out rows that cannot be used.")
flags.DEFINE_float("max_invalid_share", 0.1, "Share of the rows that --skip_invalid may leave out.")
