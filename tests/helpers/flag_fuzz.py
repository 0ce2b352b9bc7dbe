"""Give every flag of one launch command extreme values: see tests/launch/test_flag_fuzz.py.

    python -m tests.helpers.flag_fuzz COMMAND DIRECTORY REPORT

DIRECTORY holds a dataset `data`, a run `run`, a store `store` and a Markdown page. The work behind the
flags is replaced, so what is tried is all that happens before it. REPORT is JSON: the calls that did
not end well, and counts.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

# No path of the machine: the commands write to what they are given, perhaps as root.
VALUES = {
    "int": ["-1", "0", "2147483647", "1" + 30 * "0", "-1" + 30 * "0", "1.5", "nan", "x", ""],
    "float": ["nan", "inf", "-inf", "-1", "0", "1e29", "1e308", "x", ""],
    "bool": ["maybe", ""],
    "text": ["", ".", "..", "page.md/x", "no/such/place", "x" * 5000, "(", "\u00e9\n,"],
}
MEMORY = 12 << 30  # bytes: a value that asks for more is an error, not a killed machine


class Case(NamedTuple):
    """A command line that works, and what it must not do.

    Attributes:
      arguments: flags; {d} is the directory, {n} a new number in each call.
      replaced: module -> names in it that end the call instead of working.
      prefix: only flags whose names start with one of these are changed; empty: all.
      limited: whether memory is limited; not for stores, which map much of it.
      needs: a module without which even the working command line is refused.
    """

    arguments: str
    replaced: dict[str, list[str]]
    prefix: tuple[str, ...] = ("",)
    needs: str = "json"
    limited: bool = True


_RUN = "--workdir={d}/run"
CASES = {
    "train": Case(
        "--config=base --data={d}/data --workdir={d}/new{n} --config.data.segment=5 "
        "--config.data.segments=3 --config.model.dim=8 --config.model.layers=1",
        {"rec2pm_jax.training.training_run.TrainingRun": ["start"]},
    ),
    "compare": Case(
        "--config=base --data={d}/data --workdir={d}/new{n} --config.data.segment=5 "
        "--config.data.segments=3",
        {"launch.experiments.comparison": ["train_and_test"]},
        ("data", "workdir", "json", "png", "methods", "runs", "split"),
    ),
    "evaluate": Case(_RUN + " --json={d}/{n}.json", {"launch.evaluate": ["evaluate_run"]}),
    "evaluate heuristic": Case(
        "--heuristic=personal_frequency --data={d}/data --json={d}/{n}.json --protocol=temporal "
        "--split_time=2020-01-08",
        {},
    ),
    "reproduce": Case(
        "--suite=smoke --data={d} --workdir={d}/runs{n} --results={d}/results{n}",
        {"launch.experiments.scheduler": ["_run_all"]},
    ),
    "bench": Case(
        "--suite=topk --json={d}/{n}.json --smoke",
        {"launch.benchmarks.driver": ["measure"], "launch.bench": ["_measure_command"]},
    ),
    "aot": Case(
        "--config=base --topology=v5e:1x1 --json={d}/{n}.json",
        {"launch.compiled.report": ["compile_program"]},
        ("topology", "json", "step", "items", "batch", "hlo"),
        needs="libtpu",
    ),
    "export": Case(_RUN + " --output={d}/export{n}", {"launch.export": ["write_export"]}),
    "inspect_data": Case(
        "--data={d}/data --max_events=100", {"launch.inspect_data": ["inspect_dataset"]}
    ),
    "rebuild_memory": Case(
        _RUN + " --output={d}/store{n}", {"launch.rebuild_memory": ["rebuild"]}, limited=False
    ),
    "tidy_store": Case("--store={d}/store --expired", {}, limited=False),
    "stream": Case(
        _RUN + " --events={d}/page.md --output={d}/{n}.out --noprogress",
        {"launch.stream": ["run_stream"]},
        limited=False,
    ),
    "prepare": Case(
        "--source=synthetic --synthetic_users=5 --synthetic_items=60 --synthetic_length=40 "
        "--noprogress --output_dir={d}/prepared{n}",
        {},
    ),
    "list_fields": Case("--page={d}/page.md", {}),
    "demo": Case("--output_dir={d}/demo{n}", {"launch.demo": ["prepare"]}),
}


class Finished(SystemExit):
    """The flags were accepted."""


def finish(*_: Any, **__: Any) -> Any:
    raise Finished(0)


def replace(where: str, names: list[str]) -> None:
    """Replace functions of a module, or methods of a class in it."""
    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:
        module, _, name = where.rpartition(".")
        owner = getattr(importlib.import_module(module), name)
    for name in names:
        assert hasattr(owner, name), f"{where} has no {name}"
        setattr(owner, name, finish)


def kind_of(flag: flags.Flag) -> str:
    kind = flag.flag_type()
    return kind if kind in VALUES else "text"


def list_calls(case: Case) -> Iterator[str]:
    """Yield one changed flag after another."""
    yield ""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if not module.startswith(("launch", "rec2pm_jax", "__main__")):
            continue
        for flag in defined:
            if not flag.name.startswith(case.prefix):
                continue
            for value in VALUES[kind_of(flag)]:
                yield f"--{flag.name}={value}"


def call(main: Callable[[list[str]], None], arguments: list[str]) -> str | None:
    """Return None if a call is accepted, "" if it is refused in one line, else what is wrong."""
    from rec2pm_jax import cli

    flags.FLAGS.unparse_flags()
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.guard(main)(cli.parse_flags(["command", *arguments]))
    except SystemExit as ended:
        if isinstance(ended, Finished) or not ended.code:
            return None
    except BaseException:
        return traceback.format_exc()[-700:]
    else:
        return None
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or "Traceback" in err.getvalue() or len(lines[0]) < 20:
        return f"stderr: {err.getvalue()[-500:]!r}"
    return ""


def main(command: str, directory: str, report: str) -> None:
    case = CASES[command]
    module = importlib.import_module(f"launch.{command.split()[0]}")
    if hasattr(module, "define_flags"):
        module.define_flags()
    for where, names in case.replaced.items():
        replace(where, names)
    if case.limited:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wrong, counts = {}, {"calls": 0, "accepted": 0}
    for number, change in enumerate(list_calls(case)):
        arguments = case.arguments.format(d=directory, n=number).split()
        problem = call(module.main, [*arguments, *([change] if change else [])])
        counts["calls"] += 1
        counts["accepted"] += problem is None
        works = problem is None or importlib.util.find_spec(case.needs) is None
        if problem or not (change or works):
            wrong[change or "(nothing changed)"] = problem
    Path(report).write_text(json.dumps(counts | {"wrong": wrong}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
