"""Extreme values of every flag of every launch command end in one line, and without a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rec2pm_jax.stream.stores.base import open_store
from tests.helpers.flag_fuzz import CASES

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
TINY = {
    "data.segment": 5,
    "data.segments": 3,
    "model.dim": 8,
    "model.layers": 1,
    "method.name": "recent",
    "train.steps": 2,
    "train.eval_every": 1,
    "train.checkpoint_every": 1,
    "train.batch_size": 4,
}


def launch(directory, module, *arguments, **options):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command,
        cwd=directory,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny dataset, a tiny run, a store without users, and a page."""
    path = tmp_path_factory.mktemp("fuzz")
    sizes = ("--synthetic_users=60", "--synthetic_items=60", "--synthetic_length=60")
    finish(
        launch(
            path,
            "launch.prepare",
            "--source=synthetic",
            *sizes,
            "--output_dir=data",
            "--noprogress",
        )
    )
    fields = [f"--config.{name}={value}" for name, value in TINY.items()]
    finish(launch(path, "launch.train", "--config=base", *fields, "--data=data", "--workdir=run"))
    (path / "complete_journey_types").symlink_to("data")
    (path / "synthetic").symlink_to("data")
    with contextlib.closing(open_store(str(path / "store"))) as store:
        store.put({}, {"settings": b"{}"})  # a store that nothing was written to is removed
    shutil.copy(ROOT / "docs/training.md", path / "page.md")
    (path / "requests.jsonl").write_text('{"user": "0", "recommend": 2}\n')
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", CASES)
def test_every_flag_with_extreme_values(command, directory):
    report = directory / "report.json"
    finish(launch(directory, "tests.helpers.flag_fuzz", command, str(directory), str(report)))
    found = json.loads(report.read_text())
    assert found["calls"] >= 15 and found["accepted"]
    assert not found["wrong"], json.dumps(found["wrong"], indent=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("launch.list_fields", ()),
        ("launch.train", ("--help",)),
        ("launch.train", ("--config=base", "--data=data", "--workdir=piped", *TINY)),
        ("launch.evaluate", ("--heuristic=popularity", "--data=data")),
        ("launch.export", ("--workdir=run", "--output=piped_export")),
        ("launch.rebuild_memory", ("--workdir=run", "--output=piped_store")),
        ("launch.vectors", ("--workdir=run", "--output=piped_vectors")),
        ("launch.stream", ("--workdir=run", "--events=requests.jsonl", "--output=-")),
    ],
)
def test_a_reader_that_closes_the_output_is_one_line(module, arguments, directory):
    arguments = [f"--config.{name}={TINY[name]}" if name in TINY else name for name in arguments]
    process = launch(directory, module, *arguments)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert process.returncode == 1
    errors = [line for line in err.splitlines() if "rror" in line]
    closed = "error: The reader of this command's output has closed it, so the command ended."
    if module == "launch.stream":  # its output may be a file, so the flag is named
        closed = "error: Cannot write --output=-: Broken pipe."
    assert errors == [closed]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_command_runs_without_an_output(closed, directory):
    """A service manager may start a command with its output closed, where Python has None."""
    command = f"{sys.executable} -m launch.list_fields --page=page.md {closed}>&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("launch.export", ("--workdir=run", "--output=exported")),
        ("launch.rebuild_memory", ("--workdir=run", "--output=stored")),
        ("launch.vectors", ("--workdir=run", "--output=vectors")),
        ("launch.stream", ("--workdir=run", "--events=requests.jsonl", "--output=answers.jsonl")),
    ],
)
def test_the_devices_are_printed(module, arguments, directory):
    process = launch(directory, module, *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    lines = err if module == "launch.stream" else out
    assert re.search(r"^devices: \d+ x cpu$", lines, re.MULTILINE), (out, err)
