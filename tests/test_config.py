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

from launch.configs.base import base_config
from launch.configs.flags import define_config, get_config
from rec2pm_jax import cli
from rec2pm_jax.config import Config, MethodConfig, ModelConfig
from rec2pm_jax.config_dict import field_types, from_dict, to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import config_hash, make_method
from rec2pm_jax.presets import presets

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
        ({"model": {"heads": 3}}, "model.heads must be a divisor"),
        ({"method": {"reference_window": 0}}, "method.reference_window must be >= 1, got 0"),
        ({"method": {"slots": None}}, "method.slots must be int, got None"),
        ({"train": {"seed": -1}}, "train.seed must be in"),
        ({"compute": {"accumulate": 5}}, "batch_size=32 must be a multiple"),
    ],
)
def test_bad_values_name_the_field(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"backbone": "sasrek"}}, 'choose one of hstu, lru, sasrec.*"sasrec"'),
        (
            {"model": {"relative_bias": "position"}},
            "relative_bias is for config.model.backbone=hst",
        ),
        ({"method": {"name": "tokserial"}}, 'method.name.*"tok_serial"'),
        ({"method": {"name": "kv_mask"}, "model": {"layers": 1}}, "kv_mask needs config.model.lay"),
    ],
)
def test_methods_and_backbones_check_what_they_read(values, message):
    with pytest.raises(UserError, match=message):
        make_method(from_dict(values), num_items=10)


def test_none_is_a_value_of_optional_fields_alone():
    assert from_dict({"optim": {"clip_norm": None}}).optim.clip_norm is None
    optional = {name for name, (_, may_be_none) in field_types().items() if may_be_none}
    assert "method.reference_window" in optional and "method.slots" not in optional


def test_at_most_55_fields():
    """A new field replaces an old one, or the limit is raised on purpose."""
    assert len(field_types()) <= 55


def test_hash_covers_what_a_run_computes():
    base = config_hash(Config())
    for section, field, value in (("train", "steps", 7), ("compute", "accumulate", 2)):
        assert config_hash(from_dict({section: {field: value}})) == base
    for section, field, value in (
        ("data", "segment", 7),
        ("model", "dim", 32),
        ("method", "slots", 2),
        ("loss", "negatives", 7),
        ("optim", "clip_norm", None),
    ):
        assert config_hash(from_dict({section: {field: value}})) != base


def test_hash_leaves_out_fields_that_the_method_and_the_backbone_do_not_read():
    full = Config(method=MethodConfig(name="full"))
    other = Config(method=MethodConfig(name="full", slots=8, consistency=0.7))
    assert config_hash(full) == config_hash(other)
    assert config_hash(full) != config_hash(Config(method=MethodConfig(name="recent")))
    hstu = ModelConfig(backbone="hstu")
    copied = dataclasses.replace(hstu, identity_init=False)
    biased = dataclasses.replace(hstu, relative_bias="position")
    assert config_hash(Config(model=hstu)) == config_hash(Config(model=copied))
    assert config_hash(Config(model=hstu)) != config_hash(Config(model=biased))


@pytest.mark.smoke
@pytest.mark.parametrize("name", presets())
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
        define_config(values)
        cli.parse_flags(argv)
        return get_config()

    return parse


def test_presets_are_found_by_name_from_any_directory(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "base" in presets() and not {"flags", "log_flags"} & set(presets())
    assert parse("--config=base", "--config.data.segment=7").data.segment == 7


def test_presets_are_found_by_their_path_in_a_checkout_from_any_directory(
    parse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert parse("--config", "launch/configs/base.py") == Config()


def test_a_preset_may_be_any_python_file(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from launch.configs.base import base_config\n\n\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.data.segment = 7\n"
        "    return config\n"
    )
    assert parse("--config=mine.py", "--config.data.segments=2").data.segment == 7


def test_a_preset_needs_get_config(parse, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("config = 3\n")
    with pytest.raises(UserError, match="mine.py defines no get_config()"):
        parse(f"--config={path}")


def test_overrides_may_come_before_the_preset_and_the_last_one_counts(parse):
    config = parse("--config.data.segment=7", "--config=base", "--config.data.segment=9")
    assert config.data.segment == 9


def test_overrides(parse):
    config = parse(
        f"--config={BASE}",
        "--config.data.segment=7",
        "--config.optim.learning_rate=1",
        "--config.model.backbone=hstu",
        "--config.method.plain_memory",
        "--config.method.reference_window=3",
        "--config.optim.clip_norm=None",
    )
    assert (config.data.segment, config.optim.learning_rate) == (7, 1.0)
    assert (config.model.backbone, config.method.plain_memory) == ("hstu", True)
    assert (config.method.reference_window, config.optim.clip_norm) == (3, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [f"--config={BASE}", "--config.data.segmnt=3"],
            "flag 'config.data.segmnt'. Did you mean: config.data.segment",
        ),
        ([f"--config={BASE}", "--config.modl.dim", "3"], "Did you mean: config.model.dim"),
        ([f"--config={BASE}", "--config.data.segment=x"], "config.data.segment"),
        (["--config=developement"], 'Did you mean "development"? Presets: base, demo, development'),
        (["--config=launch/configs/bas.py"], 'no such preset or file. Did you mean "base"'),
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
        (["--config.data.segmnt=3"], "Did you mean: config.data.segment"),
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
