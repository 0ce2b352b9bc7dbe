"""What users install: versions, extras, the console command, and imports that cost nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import rec2pm_jax
from launch.__main__ import commands
from tests.package.lowest import constraints

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.smoke
def test_one_version():
    version = rec2pm_jax.__version__
    assert metadata("rec2pm_jax")["Version"] == version, "run `make install` again"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[0] == version


@pytest.mark.smoke
def test_importing_is_light():
    """Under 0.3 s: nothing heavy is imported before a name is used."""
    code = (
        "import sys, rec2pm_jax; dir(rec2pm_jax);"
        "print({'jax', 'flax', 'numpy', 'polars', 'orbax', 'grain', 'absl'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-X", "importtime", "-c", code], **_CAPTURED)
    assert result.stdout.strip() == "set()"
    [line] = [line for line in result.stderr.splitlines() if line.endswith("| rec2pm_jax")]
    assert (
        int(line.split("|")[1]) < 300_000
    )  # microseconds, imports of the standard library included


_CAPTURED = {"capture_output": True, "text": True, "check": True}


def test_public_names_are_lazy_and_documented():
    for name in rec2pm_jax.__all__:
        value = getattr(rec2pm_jax, name)
        assert callable(value), name
        assert value.__doc__, name
    assert set(rec2pm_jax.__all__) <= set(dir(rec2pm_jax))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rec2pm_jax.trian  # noqa: B018


@pytest.mark.smoke
def test_all_commands_are_listed_with_one_line():
    result = run("--help")
    assert result.returncode == 0
    assert {"train", "evaluate", "prepare", "stream", "demo"} <= set(commands())
    for name, summary in commands().items():
        assert f"  {name} " in result.stdout
        assert summary.endswith("."), f"launch/{name}.py: the docstring begins with {summary!r}"
    assert run().stdout == result.stdout
    assert run("--version").stdout.strip() == rec2pm_jax.__version__


@pytest.mark.smoke
def test_an_unknown_command_names_the_nearest():
    result = run("evalute")
    assert result.returncode == 1
    assert result.stderr == "error: there is no command 'evalute'. Did you mean \"evaluate\"?\n"


def test_a_command_gets_its_flags_and_its_exit_code(tmp_path):
    result = run("prepare", "--source=interactions", "--output_dir=data", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        "error: --source=interactions needs --input=FILE, DIR or PATTERN.\n",
    )
    assert "--output_dir" in run("prepare", "--help").stdout


def test_every_requirement_has_a_floor():
    extras = list(PROJECT["optional-dependencies"])
    assert {"demo", "stream", "beam", "bench", "tpu", "gpu", "dev"} <= set(extras)
    lines = constraints(extras)
    assert "numpy==2.0.0" in lines
    assert any(line.startswith("ruff==") for line in lines)
