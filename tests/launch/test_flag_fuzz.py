"""Extreme values of every flag of every launch command end in one line, and without a traceback."""

from __future__ import annotations

import contextlib
import json
import os
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
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", CASES)
def test_every_flag_with_extreme_values(command, directory):
    report = directory / "report.json"
    finish(launch(directory, "tests.helpers.flag_fuzz", command, str(directory), str(report)))
    found = json.loads(report.read_text())
    assert found["calls"] >= 15
    assert not found["wrong"], json.dumps(found["wrong"], indent=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("launch.list_fields", ()),
        ("launch.train", ("--help",)),
        ("launch.train", ("--config=base", "--data=data", "--workdir=piped", *TINY)),
        ("launch.evaluate", ("--heuristic=popularity", "--data=data")),
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
    assert errors == [
        "error: The reader of this command's output has closed it, so the command ended."
    ]
    assert "Traceback" not in err
