"""launch.prepare and launch.inspect_data with extreme flags: they succeed or print one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data import prepare_log, random_log

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("command", "count"), [("prepare", 600), ("inspect_data", 60)])
def test_extreme_flags(tmp_path, command, count):
    """Random command lines in one process; see `tests/helpers/flag_fuzz.py`."""
    log = random_log().drop("kind")
    log.write_csv(tmp_path / "log.csv")
    prepare_log(log, tmp_path, name="data")
    fuzz = [sys.executable, "-m", "tests.helpers.flag_fuzz", command, str(tmp_path)]
    done = subprocess.run(
        [*fuzz, str(tmp_path / "report.json"), str(count)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["wrong"], json.dumps(report["wrong"], indent=1)
    assert 5 < report["accepted"] < report["calls"] - 20


@pytest.mark.parametrize(
    "arguments",
    [
        "launch.prepare --list",
        "launch.prepare --noprogress --source=synthetic --synthetic_users=50 --output_dir={}/out",
        "launch.inspect_data --data={}/first",
    ],
)
def test_a_reader_that_ends_early_is_one_line(tmp_path, arguments):
    prepare_log(random_log(), tmp_path, name="first")
    command = f"{sys.executable} -m {arguments.format(tmp_path)} | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode in (0, 1) and len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("task", ["prepare", "inspect"])
def test_an_output_on_a_full_disk_is_one_line(tmp_path, task):
    prepare_log(random_log(), tmp_path, name="first")
    flags = {
        "prepare": ["launch.prepare", "--source=synthetic", "--output_dir=/dev/full/data"],
        "inspect": ["launch.inspect_data", f"--data={tmp_path / 'first'}", "--output=/dev/full"],
    }[task]
    done = subprocess.run([sys.executable, "-m", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: Cannot write /dev/full")
    assert len(done.stderr.splitlines()) == 1
