"""--suite=topk: the exact best 100 of ten million items, compared with faiss.

faiss-cpu comes with `pip install 'rec2pm_jax[bench]'`; without it the rows of faiss hold an error.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from launch.benchmarks.case import Case, Work
from rec2pm_jax.nn.catalogue.topk import top_k

SETTING = {"items": 10_000_000, "dim": 64, "queries": 64, "k": 100}
SMOKE = {"items": 5_000, "dim": 8, "queries": 2, "k": 3}


def make_cases(smoke: bool) -> list[Case]:
    """Return rows of both searches over the same numbers, with 64 queries and with one."""
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


def _draw_arrays(items: int, dim: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return query vectors [queries, dim] and a table [items, dim]."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((queries, dim), np.float32)
    return vectors, rng.standard_normal((items, dim), np.float32)


def _make_work(
    run: Callable[[], object], ids: np.ndarray, items: int, dim: int, queries: int
) -> Work:
    """Return the work of a search; `ids_sum` of two searches is equal if they find the same items."""
    fields = {"ids_sum": int(np.asarray(ids, np.int64).sum())}
    return Work(run, flops=lambda: 2.0 * items * dim * queries, fields=fields)


def blockwise(items: int, dim: int, queries: int, k: int) -> Work:
    """Return a search with `nn.topk`."""
    vectors, table = (jax.device_put(a) for a in _draw_arrays(items, dim, queries))
    search = jax.jit(lambda vectors, table: top_k(vectors, table, k))
    _, ids = search(vectors, table)
    return _make_work(
        lambda: jax.block_until_ready(search(vectors, table)), ids, items, dim, queries
    )


def faiss_flat_ip(items: int, dim: int, queries: int, k: int) -> Work:
    """Return a search with `IndexFlatIP` on matrix products.

    By default faiss avoids matrix products for so few queries and is slower.
    """
    import faiss

    # faiss uses them from this many queries on (128,000 in release 1.15); one query needs none.
    faiss.cvar.distance_compute_blas_threshold = 2
    vectors, table = _draw_arrays(items, dim, queries)
    index = faiss.IndexFlatIP(dim)
    index.add(table)
    del table
    _, ids = index.search(vectors, k)
    return _make_work(lambda: index.search(vectors, k), ids, items, dim, queries)
