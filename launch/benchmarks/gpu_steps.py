"""The steps of `launch.benchmarks.gpu_check`: what each runs, its time limit, and what comes of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from launch.benchmarks import processes, settings
from launch.experiments.worker import count_steps
from rec2pm_jax.data.info import INFO_FILE
from rec2pm_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GRACE_S = 40.0  # a training run saves a checkpoint before it ends
LEAST_S = 20.0  # with less time left a step does not start
# With these a GPU program compiles in a third of the time. They cost speed, so only tests have them.
_FAST_COMPILATION = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
# Tests that hold on any device, but for a few that ask for several, or for our TPU kernel.
_ANY_DEVICE = (
    "training/test_step.py stream/test_export.py methods/test_session.py methods/test_kv_mask.py "
    "methods/test_passes.py nn/attention/test_attend.py"
).split()
_VERDICT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")


class Step(NamedTuple):
    """One command of Python with a time limit.

    Attributes:
      name: unique; `--only` selects by it.
      limit_s: most seconds.
      arguments: of Python.
      env: what its environment has beside ours.
      missing: why it cannot run; empty if it can.
    """

    name: str
    limit_s: float
    arguments: list[str]
    env: dict[str, str]
    missing: str = ""


def list_steps(work: Path, data: Path, smoke: bool) -> list[Step]:
    """Return the steps, the most important first.

    Args:
      work: directory of what they write: NAME.json of a benchmark, and the training run.
      data: directory of prepared datasets.
      smoke: whether sizes are tiny and the CPU computes.
    """
    tiny = (settings.SMOKE_SASREC, settings.SMOKE_HSTU, settings.SMOKE_SASREC)
    models = tiny if smoke else (settings.DEVELOPMENT, settings.HSTU, settings.SASREC)
    main, hstu, sasrec = ("{backbone}{layers}x{heads}x{dim}/".format_map(m) for m in models)
    request = "/(full/full|rec2pm_o/(read|read_incremental|update))/.{1,4}$"  # at most 1,000 events
    rooms, chosen = _ANY_DEVICE, "not pallas and not jit-2-4 and not cannot_share"
    if smoke:
        rooms, chosen = rooms[-1:], "nothing and not pallas"

    def bench(name: str, limit_s: float, suite: str, only: str, missing: str = "") -> Step:
        arguments = ["-m", "launch.bench", f"--suite={suite}", f"--only={only}"]
        arguments += [f"--json={work / name}.json"]
        arguments += ["--smoke", "--repeats=1"] if smoke else []
        return Step(name, limit_s, arguments, choose_platform(smoke), missing)

    def tests(name: str, limit_s: float, files: Iterable[str], *options: str) -> Step:
        paths = [f"tests/{file}" for file in files]
        arguments = ["-m", "pytest", "-v", "--tb=short", *paths, *options]
        if _has("xdist"):
            arguments += ["-n", "0" if smoke else "4"]
        env = choose_platform(smoke)
        if not smoke:  # tests compare the two
            env = {"JAX_PLATFORMS": "cuda,cpu", "XLA_FLAGS": _FAST_COMPILATION}
        return Step(
            name, limit_s, arguments, env, "" if _has("pytest") else "no pytest is installed"
        )

    steps = [
        tests("tests_gpu", 90, ["test_gpu.py"]),
        bench("train_main", 80, "train", f"^{main}(full|rec2pm_o)/"),
        bench("train_hstu", 110, "train", f"^{hstu}(full|rec2pm_o)/"),
        bench("infer", 130, "infer", request),
        bench("torch", 170, "torch", "", "" if _has("torch") else "no PyTorch is installed"),
        bench("train_sasrec", 70, "train", f"^{sasrec}(full|rec2pm_o|tok_serial_o)/"),
        tests("tests_any_device", 80, rooms, "-k", chosen),
        _train(work / "genrec", data, smoke),
    ]
    return [step._replace(limit_s=1e6) for step in steps] if smoke else steps


def _train(folder: Path, data: Path, smoke: bool) -> Step:
    """Return the step that trains HSTU-large in the public setting of generative-recommenders."""
    suite, dataset, run = (
        ("smoke", "synthetic", "rec2pm_o") if smoke else ("genrec", "ml1m", "large")
    )
    arguments = ["-m", "launch.reproduce", f"--suite={suite}", f"--only=/{run}/", "--workers=1"]
    arguments += [f"--data={data}", f"--workdir={folder}", f"--results={folder / 'results'}"]
    found = (data / dataset / INFO_FILE).is_file()
    missing = "" if found else f"{data / dataset} is not a prepared dataset"
    return Step(folder.name, 600, arguments, choose_platform(smoke), missing)


def choose_platform(smoke: bool) -> dict[str, str]:
    """Return the variable that makes JAX compute on the GPU, or fail where there is none."""
    return {"JAX_PLATFORMS": "cpu" if smoke else "cuda"}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_step(step: Step, deadline: float, log: IO[str]) -> dict[str, Any]:
    """Run one command until it ends or its time is over, and return its row of the report.

    Args:
      step: what to run.
      deadline: of all steps, by `time.monotonic`.
      log: file for the output, open for appending and reading.
    """
    row: dict[str, Any] = {"name": step.name, "arguments": step.arguments}
    limit = min(step.limit_s, deadline - time.monotonic() - GRACE_S)
    if step.missing or limit < LEAST_S:
        return row | {"status": "skipped", "reason": step.missing or "no time is left"}
    log.write(f"\n=== {step.name}: python {' '.join(step.arguments)}\n")
    log.flush()
    start, began = log.seek(0, os.SEEK_END), time.monotonic()
    env = processes.make_environment("default", single_thread=False) | step.env
    process = subprocess.Popen(
        [sys.executable, *step.arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env | {"PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        status = "failed" if process.wait(limit) else "done"
    except subprocess.TimeoutExpired:
        status = "stopped"
    except SystemExit:
        status = "terminated"
    finally:
        _end(process)
    row |= {"status": status, "seconds": round(time.monotonic() - began, 1)}
    log.seek(start)
    return row | ({"tests": count_verdicts(log)} if "pytest" in step.arguments else {})


def _end(process: subprocess.Popen) -> None:
    """End a command, which may first save its state, and then all that it has started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def count_verdicts(lines: Iterable[str]) -> dict[str, Any]:
    """Return how many tests passed, failed or were skipped, and the names of those that failed.

    Args:
      lines: the output of `pytest -v`, with or without processes, perhaps cut off.
    """
    found: dict[str, str] = {}
    for line in lines:
        verdict = _VERDICT.search(line)
        if verdict and "::" in line:
            name = re.sub(r"\[gw\d+\]|\[ *\d+%\]| - .*|SKIPPED \(.*\)", "", line)
            found[name.replace(verdict[0], "").strip()] = verdict[0]
    verdicts = list(found.values())
    counts: dict[str, Any] = {v.lower(): verdicts.count(v) for v in sorted(set(verdicts))}
    bad = [name for name, verdict in found.items() if verdict in ("FAILED", "ERROR")]
    return counts | ({"names": bad} if bad else {})


def unpack_training(path: str, work: str) -> None:
    """Put the training run that `read_results` packed back where it continues.

    Raises:
      UserError: `path` is no such archive.
    """
    try:
        with tarfile.open(path) as archive:
            archive.extractall(work, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"--resume={path} cannot be read: {error}") from error


def read_results(name: str, work: Path, output: Path) -> dict[str, Any]:
    """Return what a step's files add to its row, and pack the training run.

    Args:
      name: of the step.
      work: see `list_steps`.
      output: directory of the packed run.
    """
    folder, record, row = work / "genrec", work / f"{name}.json", dict[str, Any]()
    if name == folder.name and folder.is_dir():
        row["training_steps"] = sum(
            count_steps(log.parents[1]) for log in folder.rglob("train.jsonl")
        )
        for file in folder.glob("results/*.json"):
            row["record"] = json.loads(file.read_text())
        with tarfile.open(output / "genrec.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
    elif record.is_file():
        row["record"] = json.loads(record.read_text())
        errors = {r["name"]: r["error"] for r in row["record"]["rows"] if "error" in r}
        row |= {"errors": errors} if errors else {}
    return row


def format_result(row: dict[str, Any]) -> str:
    """Return one line about a step, and one for each row of its benchmark."""
    about = [row["status"], row.get("reason") or f"{row['seconds']} s"]
    about += [f"{n} {verdict}" for verdict, n in row.get("tests", {}).items() if verdict != "names"]
    lines = []
    if "training_steps" in row:
        about.append(f"{row['training_steps']} training steps in all")
    elif "record" in row:
        for one in row["record"]["rows"]:
            took = one.get("error") or f"{1e3 * one['wall_s']:.3g} ms"
            lines.append(f"  {one['name']}: {took}")
    return "\n".join([f"{row['name']}: {', '.join(about)}", *lines])
