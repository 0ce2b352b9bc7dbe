"""kill -9 under load: every acknowledged event counts once, none is lost after its acknowledgement."""

from __future__ import annotations

import os
import random
import time

import pytest

from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.load import load_recommender
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from tests.helpers.serve_client import CheckingClient, ServiceProcess
from tests.helpers.stream import make_config, make_data, save_run

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("SERVE_KILLS", "6"))  # every one starts a process; 20 before a release


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    save_run(folder / "run", make_data(folder), make_config(times=True))
    return folder


def test_kills_under_load(folder):
    flags = ("--workdir=run", "--store=store", "--journal=journal", "--commit_s=0.02")
    service = ServiceProcess(folder, *flags)
    clients = [CheckingClient(service, [f"r{i}a", f"r{i}b"], retries=True) for i in range(3)]
    clients += [CheckingClient(service, [f"n{i}a", f"n{i}b"], retries=False) for i in range(3)]
    for client in clients:
        client.start()
    rng = random.Random(1)
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.05, 0.5))
        service.kill()
        service.start()
    time.sleep(0.5)
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(60)
        assert not client.is_alive() and not client.problems, client.problems
    report = service.end()
    assert "done:" in report

    store = LmdbStore(folder / "store")
    engine = Engine(load_recommender(folder / "run"), store)
    total = 0
    for client in clients:
        for user, items in client.acknowledged.items():
            found = engine.get_user(user)
            assert len(items) <= found.events <= len(items) + client.unknown[user]
            total += len(items)
            if client.unknown[user] == 0:  # then what is pending is what was sent last
                names = [engine.recommender.catalogue.items.raw_ids[i] for i in found.pending.ids]
                assert names == items[len(items) - len(names) :]
    store.close()
    assert total > 20 * KILLS, "the clients hardly got through"
    sure = [c for c in clients if c.retries]
    assert sum(sum(c.unknown.values()) for c in sure) <= len(sure)
