"""Test and measure on one NVIDIA GPU in at most 12 minutes.

    python -m launch.benchmarks.gpu_check --output=runs/gpu_check --data=data

Steps run in the order of their importance, each with its own time limit, so a stop leaves what is done.
What is missing, such as PyTorch or a dataset, is skipped and said in one line. The output has three
files:

  gpu_check.json   card, driver, versions and commit, and each step with its record
  log.txt          all that the steps print
  genrec.tar.gz    the training run of HSTU-large, which gets the time that is left

`--resume=genrec.tar.gz` continues the training run of an earlier check, also on another machine.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from launch.benchmarks import driver, gpu_steps
from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records

_CARD = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
_DEVICE = "from rec2pm_jax.devices import describe_devices; print(describe_devices())"


def define_flags() -> None:
    flags.DEFINE_string("output", "runs/gpu_check", "Directory of all records.")
    flags.DEFINE_string("data", "data", "Directory that holds the prepared dataset ml1m.")
    flags.DEFINE_string("resume", "", "File genrec.tar.gz of an earlier check.")
    flags.DEFINE_float("minutes", 12.0, "Time for all steps; not with --smoke.", 0)
    flags.DEFINE_string("commit", "", "Commit of this copy of the code, if git cannot tell.")
    cli.define_only("steps")
    flags.DEFINE_boolean("smoke", False, "Tiny sizes on the CPU: whether it runs, not how fast.")


def main(_) -> None:
    args = flags.FLAGS
    deadline = time.monotonic() + (1e6 if args.smoke else 60 * args.minutes)
    # So that a terminated check ends its step too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"env": describe_environment(args.smoke, args.commit), "steps": []}
    write_records(output / "gpu_check.json", report)
    no_device = "" if report["env"]["device"] else "JAX finds no NVIDIA GPU"
    with tempfile.TemporaryDirectory() as work, open(output / "log.txt", "a+") as log:
        if args.resume:
            gpu_steps.unpack_training(args.resume, work)
        for step in gpu_steps.list_steps(Path(work), Path(args.data).absolute(), args.smoke):
            if not re.search(args.only, step.name):
                continue
            step = step._replace(missing=no_device or step.missing)
            row = gpu_steps.run_step(step, deadline, log)
            row |= gpu_steps.read_results(step.name, Path(work), output)
            report["steps"].append(row)
            write_records(output / "gpu_check.json", report)
            print(gpu_steps.format_result(row), flush=True)
            if row["status"] == "terminated":
                sys.exit(128 + signal.SIGTERM)
    print(f"written to {output / 'gpu_check.json'}")
    failed = [r["name"] for r in report["steps"] if r["status"] == "failed" or "errors" in r]
    if failed or no_device:
        raise UserError(no_device or f"failed, see {output / 'log.txt'}: {', '.join(failed)}")


def describe_environment(smoke: bool, commit: str) -> dict[str, Any]:
    """Return the card, its driver, the device by JAX, versions, and the commit; None where unknown.

    Args:
      smoke: whether steps compute on the CPU.
      commit: of the code; empty: what git says.
    """
    env = driver.describe_environment(driver.Settings())
    env |= {"commit": commit or env["commit"], "python": sys.version.split()[0], "smoke": smoke}
    for package in ("jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            env[package] = importlib.metadata.version(package)
    card = _ask(["nvidia-smi", f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader"])
    if card is None:
        print("card: skipped, nvidia-smi does not answer, so records do not name the driver")
    env["card"] = card and dict(zip(_CARD, card.split(", "), strict=False))
    platforms = gpu_steps.choose_platform(smoke)
    env["device"] = _ask([sys.executable, "-c", _DEVICE], platforms)
    return env


def _ask(command: list[str], env: dict[str, str] | None = None) -> str | None:
    """Return the last line that a command prints; None if it fails."""
    env = os.environ | (env or {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines and not done.returncode else None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
