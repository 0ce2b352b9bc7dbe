"""Write a small log of events: python tests/package/write_log.py log.csv"""

from __future__ import annotations

import csv
import random
import sys

ITEMS = ["tea", "milk", "bread", "jam", "rice", "beans", "salt", "soap"]


def events(users: int = 40, length: int = 30) -> list[tuple[str, str, int]]:
    """Return (user, item, seconds) of users who each prefer some items, oldest event first."""
    rng = random.Random(0)
    rows = []
    for user in range(users):
        weights = [rng.random() ** 3 for _ in ITEMS]
        items = rng.choices(ITEMS, weights, k=length)
        rows += [(f"user{user}", item, 86_400 * day) for day, item in enumerate(items)]
    return rows


if __name__ == "__main__":
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "sku", "ts"])
        writer.writerows(events())
