"""launch.prepare as a user runs it: exit codes, one-line errors, the summary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare", *flags], cwd=ROOT, capture_output=True, text=True
    )


def test_prepare_prints_a_summary_and_is_repeatable(tmp_path):
    flags = ["--source=synthetic", "--synthetic_users=50", f"--output_dir={tmp_path / 'data'}"]
    first = run(*flags)
    assert first.returncode == 0, first.stderr
    assert "50 users" in first.stdout and "written to" in first.stdout
    assert "50/50" in first.stderr  # the progress bar
    again = run(*flags)
    assert again.returncode == 0 and "already prepared" in again.stdout


@pytest.mark.parametrize("flag", ["--list", "--source=help"])
def test_the_list_needs_no_other_flag(flag):
    done = run(flag)
    assert done.returncode == 0 and "merrec: " in done.stdout and "CC BY-NC 4.0" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=interactions", "--input=nowhere.csv"], "nowhere.csv does not exist"),
        (["--source=interactions", "--input={log}", "--item_column=itm"], 'Did you mean "item"?'),
        (["--source=interactions", "--input={log}", "--min_item_count=9"], "lower them"),
        (["--source=movie_lens"], 'Did you mean "movielens"?'),
        (["--source=merrec"], "Licence: CC BY-NC 4.0"),
        (["--source=yambda", "--download_dir=x", "--variant=5m"], 'Did you mean "50m"?'),
        (["--source=synthetic", "--ties=random"], "choose one of shuffle, keep"),
        (["--source=synthetic", "--seed=x"], "seed"),
        (["--sources=synthetic"], "sources"),
        ([], "source"),
    ],
)
def test_user_errors_are_one_line(tmp_path, flags, message):
    log = tmp_path / "log.csv"
    log.write_text("user,item,timestamp\nu,a,1\nu,b,2\n")
    flags = [flag.format(log=log) for flag in flags]
    result = run(*flags, f"--output_dir={tmp_path / 'data'}")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()
