"""The console command: `rec2pm NAME --flag=value ...` runs `python -m launch.NAME --flag=value ...`."""

from __future__ import annotations

import ast
import runpy
import sys
from importlib import resources

import rec2pm_jax
from rec2pm_jax.errors import nearest

_HELP = ("-h", "--help", "help")
_GUARD = '\nif __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Return the first line of the docstring of every command, by the command's name."""
    found = {}
    for file in sorted(resources.files("launch").iterdir(), key=lambda file: file.name):
        name = file.name.removesuffix(".py")
        if name == file.name or name.startswith("_"):
            continue
        source = file.read_text(encoding="utf-8")
        if _GUARD in source:  # parsing is enough: importing every command would take seconds
            docstring = ast.get_docstring(ast.parse(source)) or ""
            found[name] = docstring.split("\n", 1)[0]
    return found


def listing() -> str:
    """Return the text of `rec2pm --help`."""
    known = commands()
    width = max(map(len, known))
    lines = (f"  {name:<{width}}  {summary}" for name, summary in known.items())
    return "\n".join(
        [
            f"rec2pm {rec2pm_jax.__version__}: recurrent preference memory for recommendation",
            "",
            "Usage: rec2pm COMMAND --flag=value ...   (the same as python -m launch.COMMAND ...)",
            "       rec2pm COMMAND --help             (all flags of a command)",
            "",
            "Commands:",
            *lines,
        ]
    )


def main() -> None:
    """Run the command that the command line names; list all commands if it names none."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in _HELP:
        print(listing())
        return
    if name == "--version":
        print(rec2pm_jax.__version__)
        return
    known = commands()
    module = name.replace("-", "_")
    if module not in known:
        hint = nearest(module, known) or f" Commands: {', '.join(known)}."
        sys.exit(f"error: there is no command {name!r}.{hint}")
    del sys.argv[1]
    # Runs the module as `python -m` does, so that its docstring and process workers are found.
    runpy.run_module(f"launch.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
