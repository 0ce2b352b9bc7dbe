"""Give the flags of one launch command extreme values.

    python -m tests.helpers.flag_fuzz COMMAND DIRECTORY REPORT [COUNT [SEED]]

Without COUNT every flag gets every extreme value in turn, see tests/launch/test_flag_fuzz.py. DIRECTORY
holds a dataset `data`, a run `run`, a store `store` and a Markdown page. The work behind the flags is
replaced, so what is tried is all that happens before it.

With COUNT so many random command lines run with their work, see tests/data/test_flags.py. DIRECTORY
holds `log.csv` and a dataset `data` prepared from it. The lines run there.

REPORT is JSON: the calls that did not end well, and counts.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import random
import resource
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from rec2pm_jax import cli

# No path of the machine: the commands write to what they are given, perhaps as root.
VALUES = {
    "int": ["-1", "0", "2147483647", "1" + 30 * "0", "-1" + 30 * "0", "1.5", "nan", "x", ""],
    "float": ["nan", "inf", "-inf", "-1", "0", "1e29", "1e308", "x", ""],
    "bool": ["maybe", ""],
    "text": ["", ".", "..", "page.md/x", "no/such/place", "x" * 5000, "(", "\u00e9\n,"],
}
# Random lines write below the current directory only, so they may name places of the machine.
_NUMBERS = ["0", "-1", "1", "2", "10", str(2**31), str(2**63), str(-(2**63) - 1), "9" * 40]
_FLOATS = [*_NUMBERS, "nan", "inf", "-inf", "1e400", "0.5", "1e-320"]
RANDOM_VALUES = {
    "int": _NUMBERS,
    "float": _FLOATS,
    "bool": ["true", "false"],
    "text": [
        *(*_FLOATS, "", "true", "none", "\u00e9", "\U0001f600", "a b", "*", "?", "~"),
        *("(", "[", "=", "user=", "=x", "user=(", "user=^u1$", "item=.", ".", "..", "/"),
        *("x" * 300, "x/" * 3000, "a\0b", "log.csv", "data", "../escape/../x", "../../etc/passwd"),
        *("%Y", "%", "%Q%Q", "%Y-%m-%d", "UTC", "Europe/Berlin", "s", "ms", "iso", "int", "text"),
        *(",", ";", "\t", "keep", "shuffle", "4GiB", "user", "item"),
    ],
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
    "tune": Case(
        "--config=base --data={d}/data --workdir={d}/tune{n} --search=method.slots=2,4 "
        "--max_runs=1 --config.data.segment=5 --config.data.segments=3",
        {"launch.tuning.search.Search": ["run"]},
        ("data", "workdir", "search", "max_", "workers", "sampler", "seed", "reduction", "rungs"),
        needs="optuna",
    ),
    "compare": Case(
        "--config=base --data={d}/data --workdir={d}/new{n} --config.data.segment=5 "
        "--config.data.segments=3",
        {"launch.experiments.comparison": ["train_and_test"]},
        (
            "data",
            "workdir",
            "json",
            "png",
            "methods",
            "runs",
            "split",
            "cutoffs",
            "list_m",
            "slices",
            "target_types",
        ),
    ),
    "evaluate": Case(
        _RUN + " --json={d}/{n}.json", {"launch.experiments.evaluating": ["evaluate_run"]}
    ),
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
        {"launch.benchmarks.driver": ["measure"], "launch.bench": ["_record"]},
    ),
    "aot": Case(
        "--config=base --topology=v5e:1x1 --json={d}/{n}.json",
        {"launch.compiled.report": ["compile_program"]},
        ("topology", "json", "step", "items", "batch", "hlo"),
        needs="libtpu",
    ),
    "export": Case(_RUN + " --output={d}/export{n}", {"launch.export": ["write_export"]}),
    "vectors": Case(
        _RUN + " --output={d}/vectors{n}", {"launch.vectors": ["write_vectors"]}, limited=False
    ),
    "inspect_data": Case(
        "--data={d}/data --max_events=100", {"launch.inspect_data": ["inspect_dataset"]}
    ),
    "rebuild_memory": Case(
        _RUN + " --output={d}/store{n}", {"launch.rebuild_memory": ["rebuild"]}, limited=False
    ),
    "recommend": Case(
        _RUN + " --output={d}/rows{n}", {"launch.recommend": ["recommend_all"]}, limited=False
    ),
    "tidy_store": Case("--store={d}/store --expired", {}, limited=False),
    "stream": Case(
        _RUN + " --events={d}/page.md --output={d}/{n}.out --noprogress",
        {"launch.stream": ["run_stream"]},
        limited=False,
    ),
    # With their work: whatever a path is, it is written to, or one line says why not.
    "export paths": Case(
        _RUN + " --output={d}/whole{n}", {}, ("workdir", "output", "data"), limited=False
    ),
    "vectors paths": Case(
        _RUN + " --output={d}/all{n}",
        {},
        ("workdir", "output", "data", "store", "time"),
        limited=False,
    ),
    "rebuild_memory paths": Case(
        _RUN + " --output={d}/built{n}", {}, ("workdir", "output", "data"), limited=False
    ),
    "stream paths": Case(
        _RUN + " --events={d}/page.md --output={d}/{n}.out --noprogress",
        {},
        ("workdir", "output", "data", "store", "metrics"),
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


class RandomCase(NamedTuple):
    """Command lines to draw.

    Attributes:
      good: values that work, by flag.
      always: flags of every line.
      left_out: flags that are not changed.
    """

    good: dict[str, list[str]]
    always: str = ""
    left_out: frozenset[str] = frozenset()


RANDOM_CASES = {
    "prepare": RandomCase(
        {
            "source": [*["interactions"] * 8, "synthetic", "synthetic_log", "movielens", "lastfm"],
            "output_dir": ["out", "data", "other/place"],
            "input": ["log.csv", "log.csv", "*.csv", "."],
            "max_memory": ["1MB", "4GiB"],
        },
        # Sizes that are valid, but take long, are not tried.
        "--synthetic_users=20 --synthetic_items=60 --synthetic_length=40 --noprogress",
        frozenset(["beam", "beam_options", "download_dir", "variant", "progress"]),
    ),
    "inspect_data": RandomCase({"data": ["data"], "max_events": ["1", "100"]}),
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


def call(main: Callable[[list[str]], None], arguments: Sequence[str]) -> str | None:
    """Return None if a call is accepted, "" if it is refused in one line, else what is wrong."""
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
    return f"a line of {len(lines[0])} characters" if len(lines[0]) > 2000 else ""


def try_every_flag(main: Callable[[list[str]], None], case: Case, directory: str) -> dict[str, Any]:
    """Return the report of a command line with one extreme value after another."""
    for where, names in case.replaced.items():
        replace(where, names)
    if case.limited:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    wrong, counts = {}, {"calls": 0, "accepted": 0}
    for number, change in enumerate(list_calls(case)):
        arguments = case.arguments.format(d=directory, n=number).split()
        problem = call(main, [*arguments, *([change] if change else [])])
        counts["calls"] += 1
        counts["accepted"] += problem is None
        works = problem is None or importlib.util.find_spec(case.needs) is None
        if problem or not (change or works):
            wrong[change or "(nothing changed)"] = problem
    return counts | {"wrong": wrong}


def draw_line(rng: random.Random, names: list[str], good: Mapping[str, list[str]]) -> list[str]:
    """Return the flags of one command line: mostly good ones, and a few extreme values."""
    line = {name: rng.choice(values) for name, values in good.items() if rng.random() < 0.95}
    for name in rng.sample(names, rng.choice([0, 1, 1, 2, 3])):
        kind = flags.FLAGS[name].flag_type()
        line[name] = rng.choice(RANDOM_VALUES.get(kind, RANDOM_VALUES["text"]))
    return [f"--{name}={value}" for name, value in line.items()]


def try_random_lines(
    main: Callable[[list[str]], None], command: str, count: int, seed: int
) -> dict[str, Any]:
    """Return the report of random command lines, which run in the current directory."""
    case = RANDOM_CASES[command]
    known = flags.FLAGS.flags_by_module_dict()[f"launch.{command}"]
    names = sorted(flag.name for flag in known if flag.name not in case.left_out)
    shutil.copytree("data", "pristine")
    wrong, counts = {}, {"calls": 0, "accepted": 0}
    for number in range(seed, seed + count):
        shutil.rmtree("data", ignore_errors=True)
        shutil.copytree("pristine", "data")
        line = draw_line(random.Random(number), names, case.good)
        problem = call(main, [*case.always.split(), *line])
        counts["calls"] += 1
        counts["accepted"] += problem is None
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("other", ignore_errors=True)
        if not Path("log.csv").is_file() or list(Path().rglob("*.preparing")):
            problem = f"log.csv is gone, or a workspace is left; {problem}"
        if problem:
            wrong[f"{number}: {' '.join(line)[:1000]}"] = problem
    return counts | {"wrong": wrong}


def main(command: str, directory: str, report: str, count: str = "0", seed: str = "0") -> None:
    """Try one command and write the report."""
    module = importlib.import_module(f"launch.{command.split()[0]}")
    if hasattr(module, "define_flags"):
        module.define_flags()
    path = Path(report).absolute()
    if int(count):
        os.chdir(directory)
        found = try_random_lines(module.main, command, int(count), int(seed))
    else:
        found = try_every_flag(module.main, CASES[command], directory)
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
