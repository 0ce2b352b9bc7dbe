"""A change to a new checkpoint while requests come: none is lost, and every event counts once."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
import weakref

import jax
import pytest

from rec2pm_jax.serve import process
from rec2pm_jax.serve.journal import Journal
from rec2pm_jax.serve.opening import open_service
from rec2pm_jax.stream.load import load_recommender
from rec2pm_jax.stream.opening import ModelPaths
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.rebuild import open_new_store, rebuild
from tests.helpers import stream as helpers
from tests.helpers.serve_local import serve_locally
from tests.helpers.stream import make_config, make_data, raw_events, save_run

OPTIONS = EngineOptions()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("swap"))


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """Two runs of one configuration, with different parameters."""
    folder = tmp_path_factory.mktemp("runs")
    config = make_config()
    save_run(folder / "old", dataset, config)
    random = helpers.random_params
    try:
        helpers.random_params = lambda method: jax.tree.map(lambda a: a * 1.5, random(method))
        save_run(folder / "new", dataset, config)
    finally:
        helpers.random_params = random
    return folder


def rebuild_store(run, dataset, path):
    with open_new_store(str(path)) as store:
        rebuild(load_recommender(run), dataset, store, OPTIONS)


@contextlib.contextmanager
def serving(runs, dataset, folder):
    """Serve a copy of the old run, from its rebuilt store and with a journal."""
    run = folder / "run"
    shutil.copytree(runs / "old", run)
    rebuild_store(run, dataset, folder / "first")
    paths, journal = ModelPaths(str(run)), Journal(folder / "journal")
    opened = open_service(paths, str(folder / "first"), OPTIONS, journal)
    with serve_locally(
        opened.engine, journal=journal, paths=paths, address=opened.address
    ) as service:
        yield service
    service.thread.driver.engine.store.close()
    journal.close()


def replace_checkpoint(runs, run):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(runs / "new" / "checkpoints", run / "checkpoints")


@pytest.mark.slow
def test_swap_under_load(runs, dataset, tmp_path):
    run = tmp_path / "run"
    user = dataset.user(0)
    before = int(dataset.lengths[0])
    last = raw_events(dataset, 0)[-1]["time"]
    with serving(runs, dataset, tmp_path) as service:
        old = service.post("/recommend", {"user": user})[1]["items"]
        for n in range(3):
            body = {"user": user, "item": f"i{n + 1}", "time": last + 1 + n}
            assert service.post("/events", body)[1]["accepted"] == 1
        replace_checkpoint(runs, run)
        rebuild_store(run, dataset, tmp_path / "second")

        stopping, sent, problems = threading.Event(), [3], []

        def send():
            while not stopping.is_set():
                n = sent[0]
                body = {"user": user, "item": f"i{n % 30 + 1}", "time": last + 1 + n}
                status, answer = service.post("/events", body)
                if status != 200 or answer["accepted"] != 1:
                    problems.append(answer)
                    return
                sent[0] += 1
                status, answer = service.post("/recommend", {"user": user})
                if status != 200 or answer["events"] != before + sent[0]:
                    problems.append((answer, sent[0]))
                    return

        sender = threading.Thread(target=send)
        sender.start()
        status, answer = service.post("/swap", {"store": str(tmp_path / "second")})
        assert status == 200 and answer["store"] == str(tmp_path / "second"), answer
        at_swap = sent[0]
        while sent[0] < at_swap + 5 and not problems:
            pass
        stopping.set()
        sender.join(60)
        assert not problems
        new = load_recommender(run)
        state = new.observe(
            new.user(user),
            [{"item": f"i{n % 30 + 1}", "time": last + 1 + n} for n in range(sent[0])],
        )
        found = service.post("/recommend", {"user": user})[1]
        wanted = new.recommend(state, 10)
        assert [x["item"] for x in found["items"]] == [x.item for x in wanted]
        assert found["items"][0]["score"] == pytest.approx(wanted[0].score, abs=1e-3)
        assert found["events"] == before + sent[0] and found["items"] != old
        assert "rec2pm_events_total" in service.get("/metrics")[1]
        assert service.thread.driver.summary.events == sent[0]  # totals continue
        assert (tmp_path / "first" / "data.mdb").exists()

        # The store that was left serves again after a restart, and knows every event, too.
        reopened = open_service(
            ModelPaths(str(runs / "old")), str(tmp_path / "first"), OPTIONS, service.thread.journal
        )
        assert reopened.engine.get_user(user).events == before + sent[0]
        reopened.engine.store.close()


def test_a_swap_releases_the_model_before(runs, dataset, tmp_path, monkeypatch):
    run, released = tmp_path / "run", []
    shutil.copytree(runs / "old", run)
    rebuild_store(run, dataset, tmp_path / "first")

    def change(service, app, listener):
        before = weakref.ref(service.thread.driver.engine)
        replace_checkpoint(runs, run)
        rebuild_store(run, dataset, tmp_path / "second")
        service.thread.start()
        asyncio.run(service.swapper.swap(str(tmp_path / "second")))
        service.thread.stop()
        released.append(before() is None)

    monkeypatch.setattr(process, "run_service", change)
    monkeypatch.setattr(process, "configure_interpreter", lambda: None)
    options = process.ServiceOptions(port=0, journal=str(tmp_path / "journal"), page=False)
    process.serve(ModelPaths(str(run)), str(tmp_path / "first"), OPTIONS, options)
    assert released == [True]


def test_a_swap_that_is_cancelled_leaves_the_new_store_open(runs, dataset, tmp_path):
    """At the end of a service requests are cancelled, while the thread may be at the change."""
    with serving(runs, dataset, tmp_path) as service:
        replace_checkpoint(runs, tmp_path / "run")
        rebuild_store(tmp_path / "run", dataset, tmp_path / "second")
        thread, swapper = service.thread, service.service.swapper
        switch, begun = thread.switch, threading.Event()

        def switch_late(*args):
            done = switch(*args)
            begun.set()
            time.sleep(0.5)
            return done

        async def cancel():
            task = asyncio.create_task(swapper.swap(str(tmp_path / "second")))
            await asyncio.to_thread(begun.wait, 60)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        thread.switch = switch_late
        asyncio.run(cancel())
        body = {"user": "new", "item": "i1", "time": 1_700_000_000}
        assert service.post("/events", body)[0] == 200
        assert service.thread.driver.engine.store.get(["new"]) != [None]


def test_refused_swaps_leave_the_old_model(runs, dataset, tmp_path):
    run = tmp_path / "run"
    user = dataset.user(0)
    with serving(runs, dataset, tmp_path) as service:

        def refused(store, *texts):
            status, answer = service.post("/swap", {"store": str(store)})
            assert status == 409, answer
            assert any(text in answer["error"] for text in texts), answer
            assert service.post("/recommend", {"user": user})[0] == 200

        refused("", "is the one that is served")
        refused(tmp_path / "nowhere", "there is no store in this directory")
        assert not (tmp_path / "nowhere").exists()
        rebuild_store(runs / "new", dataset, tmp_path / "new")
        refused(tmp_path / "new", "The store holds states of model")  # of a checkpoint to come
        replace_checkpoint(runs, run)
        rebuild_store(runs / "old", dataset, tmp_path / "again")
        refused(tmp_path / "again", "The store holds states of model")  # of the checkpoint before
        [arrays] = (run / "checkpoints").glob("*/params")
        shutil.move(arrays, tmp_path / "params")  # half of it is written
        refused(tmp_path / "new", "is unreadable")
        shutil.move(tmp_path / "params", arrays)
        status, answer = service.post("/swap", {"store": str(tmp_path / "new")})
        assert status == 200, answer
