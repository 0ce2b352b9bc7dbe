"""Saving and restoring a run: exact, refused for another run, and proof against damaged files."""

from __future__ import annotations

import shutil
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict, to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.training import checkpoint
from rec2pm_jax.training.checkpoint import Checkpoints, load_for_inference
from rec2pm_jax.training.checkpoint_store import abstract_with_sharding
from rec2pm_jax.training.optimizer import make_optimizer
from rec2pm_jax.training.run_checks import check_same_run
from rec2pm_jax.training.step import init_train_state
from tests.helpers.train_fakes import FakeMethod, make_iterator

CONFIG = Config()


def initial():
    method = FakeMethod(CONFIG)
    return init_train_state(method, make_optimizer(CONFIG.optim, 100), 0)


def at_step(state, step):
    """`state` with contents that depend on the step."""
    return jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state)


def meta_of(step, best_step=None, **changes):
    return {
        "step": step,
        "best_step": best_step,
        "num_items": 12,
        "config": to_dict(CONFIG),
        "config_hash": config_hash(CONFIG),
        "data_hash": "data",
    } | changes


def write_run(workdir, steps, keep=2, best_step=None):
    """Saves a checkpoint per step, one batch consumed per step."""
    checkpoints, iterator, state = Checkpoints(workdir, keep), make_iterator(4), initial()
    for step in range(1, max(steps) + 1):
        next(iterator)
        if step in steps:
            best = best_step if best_step and best_step <= step else None
            checkpoints.save(at_step(state, step), iterator, meta_of(step, best))
    checkpoints.close()


def restore(workdir, check=lambda meta: None):
    checkpoints, iterator = Checkpoints(workdir, 2), make_iterator(4)
    abstract = abstract_with_sharding(jax.eval_shape(initial))
    try:
        return checkpoints.restore(lambda meta: abstract, iterator, check), iterator
    finally:
        checkpoints.close()


def assert_is_step(restored, iterator, step):
    jax.tree.map(np.testing.assert_array_equal, restored.state, at_step(initial(), step))
    assert restored.meta["step"] == step
    undisturbed = make_iterator(4)
    for _ in range(step):
        next(undisturbed)
    np.testing.assert_array_equal(next(iterator)["ids"], next(undisturbed)["ids"])


def kept(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.mark.smoke
def test_restores_state_meta_and_data_position(tmp_path):
    assert restore(tmp_path)[0] is None
    write_run(tmp_path, [2, 5])
    assert_is_step(*restore(tmp_path), 5)


def test_opening_removes_unfinished_checkpoints_and_leaves_no_thread(tmp_path, monkeypatch):
    """A thread that outlives a refused start would print a traceback when the process ends."""
    write_run(tmp_path, [1])
    unfinished = tmp_path / "checkpoints" / f"2{ocp.utils.TMP_DIR_SUFFIX}-0"
    (unfinished / "params").mkdir(parents=True)
    started, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda t: (started.append(t), start(t)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.close()
    # The workers of pools are awaited; Orbax's own thread is of another class, and is not.
    assert {type(thread) for thread in started} <= {threading.Thread}
    assert not any(thread.is_alive() for thread in started)
    assert not unfinished.exists() and (tmp_path / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_a_workdir_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """Orbax writes checkpoints to run[1] without an error, and cannot read them."""
    with pytest.raises(UserError, match="Orbax takes for a pattern"):
        Checkpoints(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_newest_and_best_are_kept(tmp_path):
    write_run(tmp_path, [1, 2, 3, 4, 5], keep=2, best_step=2)
    assert kept(tmp_path) == [2, 4, 5]


# Orbax leaves a coroutine unawaited where a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_any_damaged_file_falls_back_or_does_not_matter(tmp_path, damage, caplog):
    write_run(tmp_path / "whole", [2, 3])
    newest = tmp_path / "whole" / "checkpoints" / "3"
    fallbacks = []
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    # Orbax merges what the processes wrote and does not read these parts again.
    for file in (file for file in files if "ocdbt.process_0" not in file.parts):
        workdir = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", workdir)
        target = workdir / "checkpoints" / "3" / file
        content = target.read_bytes()
        if damage == "delete":
            target.unlink()
        elif damage == "truncate":
            target.write_bytes(content[: len(content) // 2])
        else:
            flipped = bytearray(content)
            flipped[len(content) // 2 : len(content) // 2 + 1] = b"~"
            target.write_bytes(flipped)
        caplog.clear()
        restored, iterator = restore(workdir)
        step = restored.meta["step"]
        assert_is_step(restored, iterator, step)
        if step == 2:
            fallbacks.append(str(file))
            assert "is unreadable" in caplog.text
            assert kept(workdir) == [2]
            assert (workdir / "unreadable_checkpoints" / "3").is_dir()
        shutil.rmtree(workdir)
    assert {name.split("/")[0] for name in fallbacks} >= {"params", "optimizer", "meta", "data"}


def test_nothing_readable_is_an_error_and_moves_nothing(tmp_path):
    write_run(tmp_path, [2, 3])
    for step in ("2", "3"):
        shutil.rmtree(tmp_path / "checkpoints" / step / "params")
    with pytest.raises(UserError, match="None of the checkpoints"):
        restore(tmp_path)
    assert kept(tmp_path) == [2, 3]


@pytest.mark.parametrize(
    ("change", "data_hash", "message"),
    [
        ({"model": {"dim": 32}}, "data", "config.model.dim was 64, now 32"),
        ({"train": {"seed": 1}}, "data", "config.train.seed was 0, now 1"),
        ({"train": {"batch_size": 8}}, "data", "config.train.batch_size was 32, now 8"),
        ({}, "other", "other data .*data, now other"),
    ],
)
def test_another_run_is_refused(tmp_path, change, data_hash, message):
    write_run(tmp_path, [2])
    config = from_dict(change)
    with pytest.raises(UserError, match=message):
        restore(tmp_path, lambda meta: check_same_run(meta, config, data_hash, tmp_path))


def test_a_longer_run_is_the_same_run(caplog):
    check_same_run(meta_of(2), from_dict({"train": {"steps": 9}}), "data", "workdir")
    assert "cosine" in caplog.text


def test_load_for_inference(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "make_method", FakeMethod)
    with pytest.raises(UserError, match="train it first"):
        load_for_inference(tmp_path)
    write_run(tmp_path, [2, 3, 4], keep=1, best_step=3)
    for which, step in (("best", 3), ("latest", 4)):
        config, params, meta = load_for_inference(tmp_path, which)
        assert config == CONFIG
        assert meta["step"] == step
        jax.tree.map(np.testing.assert_array_equal, params, at_step(initial(), step).params)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "params")
    with pytest.raises(UserError, match="unreadable"):
        load_for_inference(tmp_path)


def test_no_best_before_the_first_validation(tmp_path):
    write_run(tmp_path, [2])
    with pytest.raises(UserError, match="no best checkpoint yet"):
        load_for_inference(tmp_path)
