"""Run random command lines of one launch command in this process.

    python fuzz_flags.py prepare 100

The current directory holds log.csv and the dataset `first`. Each line must succeed, or be refused by a
flag error or a `UserError` of one line. Anything else ends the process with a traceback. The last line
of output counts the two.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import random
import shutil
import sys
from pathlib import Path

from absl import flags

from rec2pm_jax.errors import UserError

NUMBERS = ["0", "-1", "1", "2", "10", str(2**31), str(2**63), str(-(2**63) - 1), "9" * 40]
FLOATS = [*NUMBERS, "nan", "inf", "-inf", "1e400", "0.5", "1e-320"]
TEXTS = [
    *(
        *FLOATS,
        "",
        "true",
        "none",
        "\u00e9",
        "\U0001f600",
        "a b",
        "*",
        "?",
        "~",
        "log.csv",
        "first",
    ),
    *("(", "[", "=", "user=", "=x", "user=(", "user=^u1$", "item=.", ".", "..", "/", "x" * 300),
    *("../escape/../x", "%Y", "%", "%Q%Q", "%Y-%m-%d", "UTC", "Europe/Berlin", "../../etc/passwd"),
    *("s", "ms", "iso", "int", "text", ",", ";", "\t", "keep", "shuffle", "4GiB", "user", "item"),
]
EXTREME = {"int": NUMBERS, "float": FLOATS, "bool": ["true", "false"]}
GOOD = {
    "prepare": {
        "source": [*["interactions"] * 8, "synthetic", "synthetic_log", "movielens", "lastfm"],
        "output_dir": ["out", "first", "other/place"],
        "input": ["log.csv", "log.csv", "*.csv", "."],
        "max_memory": ["1MB", "4GiB"],
    },
    "inspect_data": {"data": ["first"], "max_events": ["1", "100"]},
}
LEFT_OUT = {"beam", "beam_options", "download_dir", "variant", "progress"}
# Sizes that are valid, but take long.
SMALL = {"synthetic_users": 20, "synthetic_items": 60, "synthetic_length": 40}


def draw_line(rng: random.Random, names: list[str], good: dict[str, list[str]]) -> list[str]:
    """Return the flags of one command line: mostly good ones, and a few extreme values."""
    line = {name: rng.choice(values) for name, values in good.items() if rng.random() < 0.95}
    for name in rng.sample(names, rng.choice([0, 1, 1, 2, 3])):
        line[name] = rng.choice(EXTREME.get(flags.FLAGS[name].flag_type(), TEXTS))
    return [f"--{name}={value}" for name, value in line.items()]


def main(command: str, count: int) -> None:
    """Run `count` command lines of one command of `launch`."""
    module = importlib.import_module(f"launch.{command}")
    known = flags.FLAGS.flags_by_module_dict()[f"launch.{command}"]
    names = sorted(flag.name for flag in known if flag.name not in LEFT_OUT)
    defaults = [f"--{name}={value}" for name, value in SMALL.items() if name in names]
    defaults += ["--noprogress"] if command == "prepare" else []
    shutil.copytree("first", "pristine")
    counts = {"succeeded": 0, "refused": 0}
    for seed in range(count):
        rng = random.Random(seed)
        shutil.rmtree("first", ignore_errors=True)
        shutil.copytree("pristine", "first")
        line = [*defaults, *draw_line(rng, names, GOOD[command])]
        print(seed, line, flush=True)
        flags.FLAGS.unparse_flags()
        for flag in known:
            flag.unparse()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module.main(flags.FLAGS(["command", *line])[:1])
        except (UserError, flags.Error) as error:
            assert str(error).strip()
            if isinstance(error, UserError):
                assert "\n" not in str(error) and "Traceback" not in str(error), error
            counts["refused"] += 1
            print("  ", str(error)[:300], flush=True)
        else:
            counts["succeeded"] += 1
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("other", ignore_errors=True)
        assert Path("log.csv").is_file()
        assert not list(Path().rglob("*.preparing")), list(Path().rglob("*.preparing"))
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
