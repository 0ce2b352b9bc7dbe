"""--suite=recommend: the best 20 of 100,000 items for every user of a store, as Parquet files.

Users have memories and pending events as in `--suite=stream`, with segments of 25 events. The store is
filled first, which is not timed. `cpu_s` and `wall_s` cover all of the call: records are read and
decoded, users are ranked, and rows are written.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.benchmarks import settings
from launch.benchmarks.stream_load import Population, make_recommender, write_history
from rec2pm_jax.stream.bulk.run import BulkOptions, recommend_all
from rec2pm_jax.stream.bulk.users import open_users
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore

K = 20
POPULATION = Population(users=1_000_000, items=100_000, mean_history=60)
SMOKE_POPULATION = Population(users=500, items=settings.SMOKE_ITEMS, mean_history=10)


def measure_rows(smoke: bool) -> Iterator[dict[str, Any]]:
    """Yield one row, see the module; smoke: with few users."""
    population = SMOKE_POPULATION if smoke else POPULATION
    model = settings.SMOKE_SASREC if smoke else settings.DEVELOPMENT
    changes: dict[str, Any] = {} if smoke else {"data": {"segment": 25, "segments": 16}}
    config = settings.make_config("rec2pm_o", model, smoke=smoke, **changes)
    recommender = make_recommender(config, population.items)
    options = BulkOptions()
    with tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/store"
        store = LmdbStore(address)
        form = Engine(recommender, store, EngineOptions()).record_format
        with_memory = write_history(store, form, recommender, population)
        store.close()
        began, cpu = time.perf_counter(), _measure_cpu_s()
        search = plan_search(recommender.catalogue, K)
        output = Path(directory, "output")
        with open_users(recommender, address, one_pass=False, keeps_seen=False, now=0.0) as source:
            done = recommend_all(source, source.names, search, None, output, {}, options)
        wall, cpu = time.perf_counter() - began, _measure_cpu_s() - cpu
        written = sum(file.stat().st_size for file in output.iterdir())
    yield {
        "name": f"recommend/{population.users}",
        "method": "rec2pm",
        "memory": "overwrite",
        "users": done["users"],
        "users_with_memory": with_memory,
        "popular": done["popular"],
        "items": population.items,
        "k": K,
        "batch_size": options.batch_size,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "users_per_s": round(done["users"] / wall),
        "users_per_cpu_s": round(done["users"] / cpu),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "output_bytes_per_user": round(written / population.users, 1),
    }


def _measure_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
