"""Extreme values of the flags of the commands that serve: one line each, nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.stream import make_config, make_data, save_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LONG = "a" * 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    dataset = make_data(folder)
    save_run(folder / "run", dataset, make_config())
    (folder / "events.jsonl").write_text('{"user": 1, "item": "i1"}\n{"user": 1, "recommend": 2}\n')
    (folder / "file").write_text("no directory")
    return folder


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("stream", "--expire_days=99999", "not a number in the range"),
        ("stream", "--expire_days=nan", "must be a finite number"),
        ("stream", "--max_ahead_s=nan", "must be a finite number"),
        ("stream", "--commit_s=inf --store=new", "not a number in the range"),
        ("stream", "--max_ahead_s=-1", "max_ahead_s"),
        ("stream", "--expire_days=1e31 --store=new", "not a number in the range"),
        ("stream", "--max_ahead_s=inf --expire_days=9999 --sessions=0 --store=kept", ""),
        ("stream", f"--max_live={10**18} --sessions={10**18}", ""),
        ("stream", f"--max_live={10**30}", "must fit 64 bits"),
        ("stream", f"--worker={10**30}/{10**31}", "several workers need a store"),
        ("stream", f"--store={LONG}", "File name too long"),
        ("stream", "--store=file", "Cannot write file"),
        ("stream", "--store=file/new", "Cannot write file/new"),
        ("stream", f"--events={LONG} --store=new", "cannot be read"),
        ("stream", f"--output={LONG} --store=new", "Cannot write --output="),
        ("stream", "--output=/dev/full", "no room left"),
        ("stream", "--metrics=/dev/full", "no room left"),
        ("stream", "--metrics=. --store=new", "Cannot write --metrics="),
        ("stream", "--data=none --store=new", "no dataset.json"),
        ("tidy_store", f"--store={LONG} --compact", "there is no store"),
        ("tidy_store", f"--store=kept --forget=1,,{'é' * 300}", "at most 480 bytes"),
        ("tidy_store", "--store=kept --forget=1,,2", ""),
        ("tidy_store", "--store=redis://127.0.0.1:99999/0 --compact", "no address"),
        ("rebuild_memory", f"--output={LONG}", "File name too long"),
        ("rebuild_memory", "--output=file", "is there already"),
        ("rebuild_memory", "--output=.", "is there already"),
        ("rebuild_memory", "--output=file/new", "file/new.building"),
        ("rebuild_memory", f"--output=rebuilt --workers={10**18}", ""),
        ("rebuild_memory", f"--output=other --workers={10**30}", "must fit 64 bits"),
        ("export", f"--output={LONG}", "too long for a file system"),
        ("export", "--output=.", "is there already"),
        ("export", "--output=file/new", "Cannot write file/new"),
        ("export", f"--output=exported --k={10**18}", ""),
        ("export", f"--output=other --k={10**30}", "must fit 64 bits"),
    ],
)
def test_extreme_values_are_one_line(folder, command, flags, message):
    given = flags.split()
    if command != "tidy_store":
        given.append("--workdir=run")
    if command == "stream":
        given = ["--events=events.jsonl", "--output=-", *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *given],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == bool(message), done.stderr
    if message:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], done.stderr
    assert not (folder / "new").exists()
