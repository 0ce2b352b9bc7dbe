"""A full disk ends training in one line, whichever file it hits, and closing never hides that line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.training import checkpoint, metric_writer, training_run
from rec2pm_jax.training.loop import train_on
from rec2pm_jax.training.training_run import TrainingData
from tests.helpers.train_fakes import FakeMethod, fake_validation, make_iterator
from tests.training.test_loop import BATCH, config_of


def train(workdir):
    config = config_of(steps=4, log_every=1, eval_every=2, checkpoint_every=2)
    data = TrainingData(make_iterator(BATCH), "data")
    return train_on(config, data, FakeMethod(config), workdir, fake_validation)


@pytest.fixture(autouse=True)
def _load_fakes(monkeypatch):
    monkeypatch.setattr(checkpoint, "make_method", FakeMethod)


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (metric_writer.LogFiles, "write"),
        (metric_writer.LogFiles, "positions"),
        (metric_writer.TensorBoardFile, "__init__"),
        (metric_writer.TensorBoardFile, "add_scalar"),
        (metric_writer.TensorBoardFile, "flush"),
        (training_run, "write_json"),
    ],
)
def test_every_writer_says_that_there_is_no_room(owner, name, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, no_room)
    with pytest.raises(
        UserError, match=f"^Cannot write {tmp_path}.*: no room left on its disk"
    ) as found:
        train(tmp_path)
    assert "\n" not in str(found.value)


def test_closing_does_not_hide_the_first_error(tmp_path, monkeypatch):
    closed = []

    def fail_to_close(self):
        closed.append(type(self).__name__)
        raise OSError(errno.EIO, "another error")

    monkeypatch.setattr(metric_writer.LogFiles, "write", no_room)
    for owner in (
        metric_writer.LogFiles,
        metric_writer.TensorBoardFile,
        checkpoint.Checkpoints,
    ):
        monkeypatch.setattr(owner, "close", fail_to_close)
    with pytest.raises(UserError, match="no room left on its disk"):
        train(tmp_path)
    assert closed == ["LogFiles", "Checkpoints"]  # all are closed, whatever the first one does


def test_the_logs_of_a_run_are_closed_although_one_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writer.TensorBoardFile, "close", no_room)
    writer = metric_writer.LogFiles(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert all(file.closed for file in writer._files.values())


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 12, 20, 40, 80, 120])
def test_disks_of_several_sizes(kilobytes, tmp_path):
    """A real file system fills up at another file each time; once there is room, the run completes."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(tmp_path)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(UserError, match="no room left on its disk"):
            train(tmp_path / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        assert train(tmp_path / "run")["steps"] == 4
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
