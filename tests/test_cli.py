"""The start of every command: what bad flags and errors of the operating system print."""

from __future__ import annotations

import errno
import os

import pytest
from absl import flags

import rec2pm_jax
from rec2pm_jax import cli
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, prepare
from rec2pm_jax.errors import UserError

LONG = "x" * 300  # a file name has at most 255 bytes
DEEP = "x/" * 3000  # a path has at most 4095


@pytest.fixture
def flag_values(monkeypatch):
    """The process's flags, with two that hold paths."""
    values = flags.FlagValues()
    flags.DEFINE_string("here", "", "A path.", flag_values=values)
    flags.DEFINE_list("there", [], "Paths.", flag_values=values)
    flags.DEFINE_string("compilation_cache", "", "None.", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    return values


def call(main, *arguments):
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.guard(main)(cli.parse_flags(["command", *arguments]))
    return ended.value.code


@pytest.mark.parametrize("path", [LONG, DEEP])
@pytest.mark.parametrize("look", [os.stat, open, os.mkdir, os.listdir])
def test_a_path_that_is_too_long_names_its_flag(flag_values, capsys, path, look):
    assert call(lambda _: look(f"{flag_values.here}/file"), f"--here={path}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --here: the path is too long for a file system (x")
    assert len(error.splitlines()) == 1 and len(error) < 700


@pytest.mark.parametrize("argument", ["--here=a\0b", "--there=a,b\0"])
def test_a_nul_character_names_its_flag(flag_values, capsys, argument):
    assert call(lambda _: None, argument) == 1
    name = argument.split("=")[0]
    assert capsys.readouterr().err == f"error: {name} holds a NUL character; leave it out.\n"


def test_a_cache_that_cannot_be_is_refused(flag_values, capsys):
    assert call(lambda _: None, f"--compilation_cache={LONG}") == 1
    assert "is too long for a file system" in capsys.readouterr().err


def test_a_long_word_of_a_message_is_cut(flag_values, capsys):
    def main(_):
        raise UserError(f"--here={DEEP} does not exist.")

    assert call(main, "--there=a") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --here=x/x/x") and error.endswith(".. does not exist.\n")
    assert len(error) < 200


@pytest.mark.parametrize("path", [LONG, DEEP, "a\0b"])
def test_the_python_api_refuses_paths_that_no_file_has(tmp_path, path):
    good = str(tmp_path / "data")
    for call_api in (
        lambda: prepare(PrepareOptions("interactions", good, input=path)),
        lambda: prepare(PrepareOptions("synthetic", path)),
        lambda: append(PrepareOptions("interactions", path, input="log.csv")),
        lambda: rec2pm_jax.open_dataset(path),
        lambda: rec2pm_jax.load(path),
    ):
        with pytest.raises(UserError, match="too long|NUL") as refused:
            call_api()
        assert len(str(refused.value)) < 200


def test_other_errors_of_the_system_name_the_file(flag_values, capsys):
    def main(_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "gone.csv")

    assert call(main, "--here=gone.csv") == 1
    assert capsys.readouterr().err == "error: gone.csv: No such file or directory.\n"
