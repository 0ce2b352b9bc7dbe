"""--suite=topk: the exact best 100 of ten million items, against faiss.

faiss-cpu is in requirements-bench.txt; without it its row says so.
"""

from __future__ import annotations

import jax
import numpy as np

from launch.benchmarks.case import Case, Work
from rec2pm_jax.nn.catalogue.topk import top_k

SETTING = {"items": 10_000_000, "dim": 64, "queries": 64, "k": 100}
SMOKE = {"items": 5_000, "dim": 8, "queries": 2, "k": 3}


def cases(smoke: bool) -> list[Case]:
    """Both get the same numbers, once with 64 queries, once with one."""
    setting = SMOKE if smoke else SETTING
    rows = []
    for queries in (setting["queries"], 1):
        options = setting | {"queries": queries}
        row = {"batch": queries, "dtype": "float32", "k": options["k"]}
        row |= {name: options[name] for name in ("items", "dim")}
        for build in ("blockwise", "faiss_flat_ip"):
            name = f"{build}/{options['items']}/{queries}"
            fields = row | {"method": build}
            rows.append(Case(name, f"{queries} queries", f"topk:{build}", options, fields))
    return rows


def _arrays(items: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n, dim), np.float32) for n in (queries, items))


def _work(run, ids: np.ndarray, items: int, dim: int, queries: int) -> Work:
    """`ids_sum` of two methods is equal when they found the same items."""
    fields = {"ids_sum": int(np.asarray(ids, np.int64).sum())}
    return Work(run, flops=lambda: 2.0 * items * dim * queries, fields=fields)


def blockwise(items: int, dim: int, queries: int, k: int) -> Work:
    """`nn.topk`."""
    vectors, table = (jax.device_put(a) for a in _arrays(items, dim, queries))
    search = jax.jit(lambda vectors, table: top_k(vectors, table, k))
    _, ids = search(vectors, table)
    return _work(lambda: jax.block_until_ready(search(vectors, table)), ids, items, dim, queries)


def faiss_flat_ip(items: int, dim: int, queries: int, k: int) -> Work:
    """`IndexFlatIP`, on matrix products, which its default avoids for so few queries at a loss."""
    import faiss

    # faiss takes them from this many queries on (release 1.15: 128,000); one query has none to make.
    faiss.cvar.distance_compute_blas_threshold = 2
    vectors, table = _arrays(items, dim, queries)
    index = faiss.IndexFlatIP(dim)
    index.add(table)
    del table
    _, ids = index.search(vectors, k)
    return _work(lambda: index.search(vectors, k), ids, items, dim, queries)
