"""The configuration and how commands report what is wrong with it."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from launch import cli
from launch.configs.base import base_config
from rec2pm_jax.config import Config, DataConfig
from rec2pm_jax.config_dict import as_stored, config_hash, from_dict, to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.train.identity import check_same_run

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "launch/configs/base.py")


def test_round_trip():
    config = from_dict({"data": {"segment": 7}, "optim": {"learning_rate": 1}})
    assert config.data.segment == 7
    assert config.optim.learning_rate == 1.0
    assert isinstance(config.optim.learning_rate, float)
    assert from_dict(to_dict(config)) == config
    assert from_dict(base_config().to_dict()) == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"segmnt": 3}}, 'data.segmnt.*"segment"'),
        ({"modle": {}}, 'modle.*"model"'),
        ({"data": {"segment": 0}}, "data.segment must be >= 1, got 0"),
        ({"data": {"segment": "3"}}, "data.segment must be int"),
        ({"data": {"segment": 2.0}}, "data.segment must be int"),
        ({"train": {"batch_size": True}}, "train.batch_size must be int"),
        ({"data": {"recent": 26}}, "data.recent must be between 1 and"),
        ({"model": {"backbone": "sasrek"}}, 'choose one of sasrec, hstu.*"sasrec"'),
        ({"model": {"heads": 3}}, "model.heads must be a divisor"),
        ({"model": {"relative_bias": "position"}}, "relative_bias is for model.backbone=hstu"),
        ({"method": {"name": "tokserial"}}, 'method.name.*"tok_serial"'),
        ({"method": {"name": "kv_mask"}, "model": {"layers": 1}}, "kv_mask needs config.model.lay"),
        ({"method": {"truncate": 1}}, "method.truncate must be 0 .never. or >= 2, got 1"),
        ({"compute": {"accumulate": 5}}, "batch_size=32 must be a multiple"),
    ],
)
def test_bad_values_name_the_field(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(values)


def test_hash_covers_all_but_train():
    base = config_hash(Config())
    assert config_hash(from_dict({"train": {"steps": 7}})) == base
    for section, field, value in (
        ("data", "segment", 7),
        ("model", "dim", 32),
        ("method", "slots", 2),
        ("loss", "negatives", 7),
        ("optim", "b1", 0.8),
    ):
        assert config_hash(from_dict({section: {field: value}})) != base


PRESETS = sorted(p.stem for p in (ROOT / "launch/configs").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    module = importlib.import_module(f"launch.configs.{name}")
    from_dict(module.get_config().to_dict())
    assert module.__doc__


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line on flags of its own and returns the Config."""
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)

    def parse(*arguments):
        argv = ["program", *arguments]
        cli.define_config(flag_values=values, sys_argv=argv)
        cli._parse(argv)
        return cli.get_config()

    return parse


def test_overrides(parse):
    config = parse(
        f"--config={BASE}",
        "--config.data.segment=7",
        "--config.optim.learning_rate=1",
        "--config.model.backbone=hstu",
        "--noconfig.model.scan_layers",
    )
    assert (config.data.segment, config.optim.learning_rate) == (7, 1.0)
    assert (config.model.backbone, config.model.scan_layers) == ("hstu", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [f"--config={BASE}", "--config.data.segmnt=3"],
            'data.segmnt. Did you mean "data.segment"',
        ),
        ([f"--config={BASE}", "--config.modl.dim", "3"], 'modl.dim. Did you mean "model.dim"'),
        ([f"--config={BASE}", "--config.data.segment=x"], "config.data.segment"),
        (["--config=launch/configs/bas.py"], 'no such file. Did you mean "base"'),
        ([], "--config must have a value"),
        (
            [f"--config={BASE}", "--confg=3"],
            "Unknown command line flag 'confg'. Did you mean: config",
        ),
    ],
)
def test_bad_flags_are_one_line(parse, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.segmnt=3"], 'Did you mean "data.segment"'),
        (["--config.data.segment=-1"], "config.data.segment must be >= 1, got -1"),
        (["--data=missing"], "missing"),
        (["--dta=x"], "Unknown command line flag 'dta'"),
        (["surplus"], "Unexpected argument 'surplus'"),
        ([], "--data must have a value"),
    ],
)
def test_launch_train_errors(tmp_path, arguments, message):
    command = [sys.executable, "-m", "launch.train", f"--config={BASE}", *arguments]
    if arguments:
        command[4:4] = [f"--workdir={tmp_path}", "--data=nowhere"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_new_option_at_its_neutral_value_leaves_the_hash_alone():
    @dataclasses.dataclass(frozen=True)
    class Grown(DataConfig):
        option: int = dataclasses.field(default=0, metadata={"neutral": 0})

    before = config_hash(Config())
    assert config_hash(dataclasses.replace(Config(), data=Grown())) == before
    assert config_hash(dataclasses.replace(Config(), data=Grown(option=1))) != before


def test_a_run_from_before_an_option_goes_on_with_its_neutral_value():
    """Not with the default, which may be a newer recipe."""
    config = from_dict({"method": {"recall": False, "reference_window": 0}})
    stored = to_dict(config)
    for section, field in (
        ("method", "recall"),
        ("method", "reference_window"),
        ("model", "table"),
    ):
        del stored[section][field]
    assert from_dict(as_stored(stored)) == config != from_dict(stored)
    meta = {"config": stored, "config_hash": config_hash(config), "data_hash": "d", "step": 0}
    check_same_run(meta, config, "d", "runs/old")
    with pytest.raises(UserError, match=r"config\.method\.recall was False, now True"):
        check_same_run(meta, Config(), "d", "runs/old")
