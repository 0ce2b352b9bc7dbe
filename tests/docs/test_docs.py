"""The documents hold: Python runs, command lines parse, links resolve, generated tables are current."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.code_index import CODE, TESTS
from tests.docs.names import Text, missing, text_of_module, text_of_page
from tests.docs.pages import (
    DOCSTRINGS,
    PAGES,
    ROOT,
    Command,
    anchors,
    blocks,
    docstring_commands,
    extras_named,
    links,
    page_commands,
)


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


WITH_PYTHON = [p for p in PAGES if any(b.language == "python" for b in blocks(p.read_text()))]


@pytest.mark.parametrize(
    "page",
    [
        # The page on training trains several models.
        pytest.param(p, marks=[pytest.mark.slow] if p.stem == "training" else [])
        for p in WITH_PYTHON
    ],
    ids=[_name(p) for p in WITH_PYTHON],
)
def test_python_runs(page, demo_directory, monkeypatch):
    """Blocks of a page run one after another, where `make demo` has left its run."""
    monkeypatch.chdir(demo_directory)
    names: dict = {"__name__": "__main__"}
    for block in blocks(page.read_text()):
        if block.language != "python":
            continue
        if ">>>" in block.text:
            test = doctest.DocTestParser().get_doctest(
                block.text, names, _name(page), _name(page), block.line
            )
            runner = doctest.DocTestRunner(
                optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            runner.run(test, clear_globs=False)
            assert not runner.failures, f"{_name(page)}:{block.line}: an example fails, see above"
            names = test.globs
            continue
        # Lines of tracebacks are those of the page.
        code = "\n" * block.line + block.text
        exec(compile(code, str(page), "exec"), names)


@pytest.fixture(scope="module")
def commands() -> list[Command]:
    found = [c for page in PAGES for c in page_commands(page)]
    return found + [c for file in DOCSTRINGS for c in docstring_commands(file)]


def test_commands_of_launch_parse(commands):
    """Commands exist, and so do their flags and presets; values are of the right kind."""
    lines, parsed, bad = [], [], []
    for command in commands:
        launched = _module(command.words)
        if launched is None:
            continue
        module, arguments = launched
        if not module or set(arguments) & {"-h", "--help", "--helpfull", "--version"}:
            continue
        file = ROOT / f"{module.replace('.', '/')}.py"
        if not file.is_file():
            bad.append(f"{command.place}: there is no {module}: {' '.join(command.words)}")
            continue
        lines.append(command)
        parsed.append({"module": module, "arguments": arguments, "complete": command.complete})
    assert lines, "no command line was found"
    result = subprocess.run(
        [sys.executable, "tests/docs/parse_commands.py"],
        input=json.dumps(parsed),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for command, error in zip(lines, json.loads(result.stdout), strict=True):
        if error and not any(error in line for line in bad):  # a broken module is reported once
            bad.append(f"{command.place}: {' '.join(command.words)}\n    {error}")
    assert not bad, "\n" + "\n".join(bad)


def _module(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the module of `launch` that a command runs ("" for none) and its arguments."""
    if words[0] == "rec2pm":
        name, arguments = words[1] if len(words) > 1 else "", words[2:]
    elif words[1:2] == ["-m"] and words[2].startswith("launch"):
        name, arguments = words[2].partition(".")[2], words[3:]
        if not name:
            name, arguments = words[3] if len(words) > 3 else "", words[4:]
    else:
        return None
    if not name or name.startswith("-") or name.isupper():
        return "", arguments
    return f"launch.{name.replace('-', '_')}", arguments


def test_commands_of_make_and_scripts_exist(commands):
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    bad = []
    for place, words, _ in commands:
        if words[0] == "make" and (unknown := {w for w in words[1:] if "=" not in w} - targets):
            bad.append(f"{place}: the Makefile has no target {', '.join(sorted(unknown))}")
        if words[0].startswith("python") and words[1].endswith(".py"):
            if not (ROOT / words[1]).is_file() and "my_" not in words[1]:
                bad.append(f"{place}: there is no {words[1]}")
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page):
    bad = []
    for line, target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            bad.append(f"{_name(page)}:{line}: {target}: there is no {path}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            bad.append(f"{_name(page)}:{line}: {target}: no heading of {file.name} is #{anchor}")
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_names_in_pages_exist(page):
    """Files, functions, classes, fields and flags that a page names are in the code."""
    bad = missing(text_of_page(page))
    assert not bad, "\n" + "\n".join(bad)


def test_names_in_docstrings_and_comments_exist():
    bad = [line for file in (*CODE, *TESTS) for line in missing(text_of_module(file))]
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize(
    "line",
    [
        "See `nn/attention.py`.",
        "See docs/no_such_page.md.",
        "`methods/rec2pm.py` `update_pass`",
        "`layout.no_such_layout`",
        "`TokenMemory.no_such_method`",
        "`config.method.horizons`",
        "`no_such_word_in_code`",
        "--config.loss.kind=full_softmax",
        "--no_such_flag",
        "`evaluate/`",
    ],
)
def test_a_wrong_name_is_found(line):
    assert missing(Text(ROOT / "docs/page.md", ((1, line),)))


def test_extras_exist():
    """Whatever text says pip install 'rec2pm_jax[NAME]' names an extra of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = [*PAGES, *ROOT.glob("rec2pm_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]
    bad = {
        f"{_name(file)}: there is no extra {extra}"
        for file in files
        for extra in extras_named(file.read_text()) - set(project["optional-dependencies"])
    }
    assert not bad, "\n" + "\n".join(sorted(bad))


def test_the_diagram_is_what_its_script_draws(tmp_path):
    shutil.copy(ROOT / "docs/make_diagram.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_diagram.py"], check=True, capture_output=True)
    same = (tmp_path / "diagram.svg").read_text() == (ROOT / "docs/diagram.svg").read_text()
    assert same, "docs/diagram.svg is out of date; run python docs/make_diagram.py"


@pytest.mark.slow
def test_generated_tables_are_current():
    command = [sys.executable, "-m", "launch.experiments.publish", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
