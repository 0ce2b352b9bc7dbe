"""Answer users from exported vectors with faiss, without the model and without this package.

    python -m launch.vectors --workdir=runs/x --output=vectors/x
    python examples/search_vectors.py vectors/x 1 17

The index finds items by inner products. A user's own items have addends, which no index knows. So as
many more items are found as a user can own, and the own items are scored anew. The result is exact.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import polars as pl


class Vectors(NamedTuple):
    """What `launch.vectors` has written, as Parquet.

    Attributes:
      items: raw ids; row i of `item_vectors` is item i.
      item_vectors: float32 [items, D].
      users: row of each user in `user_vectors`, by raw id.
      user_vectors: float32 [users, D].
      own: row and addend of every own item, by the raw id of the user.
      index: of the item vectors.
      most_own_items: of one user.
    """

    items: list[str]
    item_vectors: np.ndarray
    users: dict[str, int]
    user_vectors: np.ndarray
    own: dict[str, list[tuple[int, float]]]
    index: faiss.Index
    most_own_items: int


def load(directory: str | Path) -> Vectors:
    """Read the files of a directory and build the index."""
    directory = Path(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    if manifest["format"] != "parquet":
        sys.exit(f"error: {directory} has format {manifest['format']}; export it as parquet.")
    items = pl.read_parquet(directory / "items.parquet")
    users = pl.read_parquet(directory / "users-*.parquet")
    own = pl.read_parquet(directory / "own_items-*.parquet")
    own_of: dict[str, list[tuple[int, float]]] = {}
    for user, row, addend in own.join(items, on="item").select("user", "row", "addend").iter_rows():
        own_of.setdefault(user, []).append((row, addend))
    vectors = items["vector"].to_numpy()
    index = faiss.IndexFlatIP(manifest["dimension"])
    index.add(vectors)
    return Vectors(
        items["item"].to_list(),
        vectors,
        {user: row for row, user in enumerate(users["user"])},
        users["vector"].to_numpy(),
        own_of,
        index,
        manifest["most_own_items"],
    )


def search(vectors: Vectors, users: list[str], k: int) -> list[list[tuple[str, float]]]:
    """Return the (item, score) of the `k` best items of each user, best first."""
    queries = vectors.user_vectors[[vectors.users[user] for user in users]]
    count = min(k + vectors.most_own_items, len(vectors.items))
    scores, rows = vectors.index.search(queries, count)
    answers = []
    for place, user in enumerate(users):
        found = dict(zip(rows[place].tolist(), scores[place].tolist(), strict=True))
        for row, addend in vectors.own.get(user, []):
            found[row] = float(queries[place] @ vectors.item_vectors[row]) + addend
        best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        answers.append([(vectors.items[row], score) for row, score in best])
    return answers


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: search_vectors.py DIRECTORY USER..")
    vectors, users = load(sys.argv[1]), sys.argv[2:]
    if unknown := [user for user in users if user not in vectors.users]:
        sys.exit(f"error: {unknown[0]!r} has no vector in {sys.argv[1]}.")
    for user, answer in zip(users, search(vectors, users, k=10), strict=True):
        print(user, json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
