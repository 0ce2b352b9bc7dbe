"""Jobs of several processes on this machine: the same numbers, and an end to every disturbance."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rec2pm_jax.training.checkpoint import load_for_inference
from tests.helpers.train_fakes import assert_same_run

ROOT = Path(__file__).parents[2]
STEPS = 20
OVERRIDES = {
    "compute.devices": 0,
    "data.segment": 5,
    "data.segments": 3,
    "loss.negatives": 16,
    "method.name": "recent",
    "model.dim": 16,
    "model.dropout": 0.2,
    "model.layers": 1,
    "model.table": "sharded",
    "optim.learning_rate": 0.05,
    "optim.table_learning_rate": 0.05,
    "train.batch_size": 8,
    "train.checkpoint_every": 5,
    "train.eval_every": 10,
    "train.eval_users": 40,
    "train.log_every": 1,
    "train.steps": STEPS,
}

pytestmark = pytest.mark.slow


class Job:
    """The processes of one job in `directory`/`workdir`, all on this machine."""

    def __init__(
        self, directory: Path, workdir: str, processes: int, flags_of_last=(), **overrides
    ):
        self.log = directory / workdir / "train" / "train.jsonl"
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        config = {f"config.{name}": value for name, value in (OVERRIDES | overrides).items()}
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        environment.pop("XLA_FLAGS", None)
        self.processes, self.outputs = [], []
        for index in range(processes):
            arguments = {
                "config": ROOT / "launch/configs/synthetic.py",
                "data": "data",
                "workdir": workdir,
                "compilation_cache": "cache",
            } | config
            if processes > 1:
                arguments |= {
                    "coordinator_address": f"localhost:{port}",
                    "num_processes": processes,
                    "process_id": index,
                }
            arguments |= dict(flags_of_last) if index == processes - 1 else {}
            command = [sys.executable, ROOT / "tests/helpers/distributed_worker.py"]
            command += [f"--{name}={value}" for name, value in arguments.items()]
            output = directory / f"{workdir}.{index}.txt"
            self.outputs.append(output)
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=directory, env=environment, stdout=file, stderr=file
                    )
                )

    def text(self, index: int) -> str:
        return self.outputs[index].read_text()

    def reach(self, step: int) -> None:
        """Waits until the log has rows of so many steps."""
        while not self.log.exists() or self.log.read_bytes().count(b"\n") < step:
            for index, process in enumerate(self.processes):
                assert process.poll() is None, self.text(index)
            time.sleep(0.02)

    def codes(self, timeout: float = 400) -> list[int]:
        """Exit codes, once all have ended."""
        end = time.monotonic() + timeout
        try:
            return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def finish(self) -> None:
        codes = self.codes()
        assert not any(codes), (codes, self.text(0)[-3000:], self.text(-1)[-3000:])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a dataset and an undisturbed run of 2 processes, `two`."""
    directory = tmp_path_factory.mktemp("jobs")
    subprocess.run(
        [sys.executable, "-m", "launch.prepare", "--source=synthetic", "--output_dir=data"]
        + ["--synthetic_users=100", "--synthetic_items=60", "--synthetic_length=80"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    Job(directory, "two", 2).finish()
    return directory


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss/total"] for line in (workdir / "train/train.jsonl").open()]


def assert_close_run(workdir: Path, expected: Path) -> None:
    """Losses of all steps, final parameters and validations agree but for rounding."""
    np.testing.assert_allclose(losses(workdir), losses(expected), atol=1e-5)
    assert len(losses(workdir)) == STEPS
    runs = (load_for_inference(path, "latest") for path in (workdir, expected))
    (_, got, meta), (_, want, other) = runs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), got, want)
    assert meta["progress"]["best"] == pytest.approx(other["progress"]["best"], abs=1e-6)


@pytest.mark.parametrize("processes", [1, 4])
def test_processes_change_nothing(place, processes):
    name = f"processes{processes}"
    Job(place, name, processes).finish()
    assert_close_run(place / name, place / "two")


def test_a_whole_table_in_two_processes(place):
    """Replicated parameters, AdamW for all: logs of two processes are those of one, roughly."""
    whole = {"model.table": "whole", "optim.table_learning_rate": "None"}
    for processes in (1, 2):
        Job(place, f"whole{processes}", processes, **whole, **{"compute.devices": 0}).finish()
    one, two = (np.array(losses(place / f"whole{processes}")) for processes in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-3)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_and_the_relaunch_is_exact(place, victim):
    name = f"killed{victim}"
    job = Job(place, name, 2)
    job.reach(8)
    job.processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes = job.codes(timeout=120)
    assert time.monotonic() - began < 120
    survivor = 1 - victim
    assert codes[survivor] == 76, job.text(survivor)
    message = job.text(survivor)
    assert f"error: process {victim} (" in message
    assert f"pid {job.processes[victim].pid})" in message
    assert "Start the same command again on all machines" in message
    Job(place, name, 2).finish()
    assert_same_run(place / name, place / "two")


def test_sigterm_to_one_process_saves_and_stops_all(place):
    job = Job(place, "stopped", 2)
    job.reach(7)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.codes(timeout=120) == [75, 75], job.text(0) + job.text(1)
    steps = [int(path.name) for path in (place / "stopped/checkpoints").iterdir()]
    assert f"stopped by SIGTERM after step {max(steps)}, which is saved" in job.text(0)
    assert max(steps) % OVERRIDES["train.checkpoint_every"]  # not a scheduled one
    Job(place, "stopped", 2).finish()
    assert_same_run(place / "stopped", place / "two")


def test_four_processes_continue_as_two(place):
    job = Job(place, "fewer", 4)
    job.reach(8)
    job.processes[2].send_signal(signal.SIGKILL)
    assert job.codes(timeout=120)[0] == 76
    assert "error: process 2 (" in job.text(0) and "error: process 2 (" in job.text(3)
    Job(place, "fewer", 2).finish()
    assert "resumed at step 5" in (place / "fewer.0.txt").read_text()
    assert_close_run(place / "fewer", place / "two")


def test_an_error_ends_all_processes_with_its_message(place):
    job = Job(place, "refused", 2, **{"train.batch_size": 7})
    assert job.codes(timeout=120) == [1, 1]
    for index in range(2):
        assert "batch_size=7 must be a positive multiple of the number of p" in job.text(index)


def test_an_error_of_one_process_ends_the_others(place):
    """Process 1 finds no data; process 0 is at its first step by then."""
    job = Job(place, "alone", 2, flags_of_last={"data": "missing"})
    assert job.codes(timeout=120) == [1, 1]
    assert "error: process 1 (" in job.text(0) and "see its own messages" in job.text(0)
    assert "missing" in job.text(1)


def evaluate(place: Path, processes: int) -> dict:
    """The record of `launch.evaluate` of `memories`, in so many processes."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    jobs = []
    for index in range(processes):
        command = [sys.executable, "-m", "launch.evaluate", "--workdir=memories", "--cutoffs=5"]
        command += ["--list_metrics", "--slices", "--compilation_cache=cache"]
        command += [f"--json=record{processes}.json"]
        if processes > 1:
            command += [f"--coordinator_address=localhost:{port}", f"--process_id={index}"]
            command += [f"--num_processes={processes}"]
        pipe = subprocess.PIPE
        jobs.append(
            subprocess.Popen(
                command, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True
            )
        )
    outputs = [job.communicate(timeout=900) for job in jobs]
    assert not any(job.returncode for job in jobs), outputs
    assert all(not output.strip() or "Gloo" in output for output, _ in outputs[1:])
    return json.loads((place / f"record{processes}.json").read_text())[0]


def test_an_evaluation_in_two_processes_is_that_of_one(place):
    """Swaps and statistics of memories included; two devices hold the table, then four."""
    changes = {"method.name": "rec2pm", "train.steps": 2, "train.eval_every": 2}
    Job(place, "memories", 1, **changes).finish()
    one, two = (evaluate(place, processes) for processes in (1, 2))
    assert (
        one["users"] > 40
        and one["swap"]["exact"]
        and one["list_metrics"]["lists"] == one["targets"]
    )
    assert two.pop("memory_variance") == pytest.approx(one.pop("memory_variance"))
    for record in (one, two):
        del record["wall_s"]
    assert two == one
