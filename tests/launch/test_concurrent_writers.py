"""Two processes that write to one run or one results directory: the second is refused by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import aot, bench
from launch.experiments import run_one, scheduler
from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.json_file import replaced_file, write_json
from rec2pm_jax.lock import alone_in, only_writer_of
from rec2pm_jax.training import loop
from tests.helpers.train_fakes import FakeMethod, fake_validation, make_iterator
from tests.launch.test_flag_fuzz import TINY, directory, finish, launch  # noqa: F401 (a fixture)


def train(workdir):
    config = Config()
    data = loop.TrainingData(make_iterator(4), "data")
    return loop.train_on(config, data, FakeMethod(config), workdir, fake_validation)


def files_of(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_second_training_of_a_run_is_refused_before_it_touches_anything(tmp_path):
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "part"
    write_json(unfinished, "of a checkpoint that the first process is writing")
    with alone_in(tmp_path / "train"):
        old = files_of(tmp_path)
        with pytest.raises(UserError, match=f"{tmp_path}/train is in use by another process"):
            train(tmp_path)
        assert files_of(tmp_path) == old


def test_a_second_worker_of_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_one, "open_dataset", lambda _: None)
    run = SimpleNamespace(name="a/b", dataset="a")
    with alone_in(tmp_path / "a/b"), pytest.raises(UserError, match="a/b is in use"):
        run_one.execute("main", run, tmp_path, tmp_path)


def test_a_second_reproduction_of_a_suite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_data_hash", lambda *_: "hash")
    job = scheduler.Job("main", "data", tmp_path / "runs", tmp_path / "results", workers=1)
    with (
        alone_in(job.results / "main.users"),
        pytest.raises(UserError, match="main.users is in use"),
    ):
        scheduler.reproduce(job)


@pytest.mark.parametrize("command", [bench, aot])
def test_a_record_that_grows_has_one_writer(command, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    values = {"json": str(path), "suite": "topk", "smoke": True, "only": "", "topology": []}
    values |= {"threads": 0, "allocator": "default", "repeats": 1, "max_gb": 0.0}
    values |= {"compilation_cache": ""}
    monkeypatch.setattr(command, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**values)))
    if command is aot:
        monkeypatch.setattr(aot, "get_config", Config)
        monkeypatch.setattr(aot.jax.config, "update", lambda *_: None)
    with only_writer_of(path), pytest.raises(UserError, match="x.json is in use"):
        command.main([])
    assert not path.exists()


def _write_often(path: Path, text: str, count: int) -> None:
    for _ in range(count):
        with replaced_file(path) as temporary:
            temporary.write_text(text)


def test_a_file_with_two_writers_is_always_one_of_theirs(tmp_path):
    path, texts = tmp_path / "x.json", ["a" * 100_000, "b" * 50_000]
    path.write_text(texts[0])
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(path, text, 200)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """So is /dev/null, which root could replace by a file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with only_writer_of(path):
        write_json(path, [1])
    assert json.loads(os.read(reader, 100)) == [1]
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.slow
def test_processes_that_train_one_run_lose_nothing(directory):  # noqa: F811
    """Three at once: each trains, is refused by name, or finds the run complete."""
    fields = [f"--config.{name}={value}" for name, value in (TINY | {"train.steps": 40}).items()]
    command = ("launch.train", "--config=base", *fields, "--data=data", "--workdir=shared")
    processes = [launch(directory, *command) for _ in range(3)]
    ended = [(*process.communicate(), process.returncode) for process in processes]
    assert sorted(code for _, _, code in ended)[0] == 0
    for out, err, code in ended:
        assert "complete: 40 steps" in out or "shared/train is in use by another process" in err
        assert code == 0 or len([x for x in err.splitlines() if x.startswith("error: ")]) == 1
    rows = (directory / "shared/train/validation.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 41))
