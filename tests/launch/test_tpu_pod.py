"""launch/tpu_pod.sh with a gcloud that only writes down what it is asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$ASKED"
case "$*" in
  *describe*) cat "$STATE" ;;
  *" create "*) echo READY > "$STATE" ;;
  *" delete "*) : > "$STATE" ;;
  *launch.train*--distributed*) code=$(head -n 1 "$CODES"); sed -i 1d "$CODES"; exit "$code" ;;
esac
"""


@pytest.fixture
def pod(tmp_path):
    """(command) -> (exit code, what gcloud was asked for); `codes` are those of training."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("gcloud", "sleep"):
        (tmp_path / name).chmod(0o755)

    def run(*arguments, codes=(), state="READY"):
        asked = tmp_path / "asked"
        asked.write_text("")
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "state").write_text(f"{state}\n" if state else "")
        environment = {"ASKED": asked, "CODES": tmp_path / "codes", "STATE": tmp_path / "state"}
        environment = os.environ | {name: str(path) for name, path in environment.items()}
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SHARED": "10.0.0.2:/share"}
        done = subprocess.run(
            ["launch/tpu_pod.sh", *arguments], cwd=ROOT, env=environment, capture_output=True
        )
        return done.returncode, asked.read_text()

    return run


def test_says_what_it_can_do(pod):
    assert pod() == (1, "")
    assert pod("tran") == (1, "")


def test_creates_what_is_missing_or_preempted_and_nothing_else(pod):
    assert " create " not in pod("create")[1]
    _, asked = pod("create", state="")
    assert "create rec2pm --zone=us-west4-a --accelerator-type=v5litepod-256" in asked
    _, asked = pod("create", state="PREEMPTED")
    assert asked.index(" delete ") < asked.index(" create ")


def test_trains_on_all_workers_and_continues_after_a_preemption(pod):
    code, asked = pod("train", "--config=launch/configs/industrial.py", codes=[75, 76, 0])
    launches = [line for line in asked.splitlines() if "launch.train --distributed" in line]
    assert (code, len(launches)) == (0, 3)
    assert "--worker=all" in launches[0]
    assert "--workdir=/mnt/rec2pm/runs/industrial" in launches[0]
    assert "--config=launch/configs/industrial.py" in launches[0]


def test_an_error_of_training_is_not_repeated(pod):
    code, asked = pod("train", codes=[1])
    assert (code, asked.count("launch.train --distributed")) == (1, 1)


def test_prepares_once(pod):
    code, asked = pod("prepare", "--source=interactions", "--input=a log.csv")
    assert code == 0
    assert "--worker=0" in asked and r"--input=a\ log.csv" in asked
