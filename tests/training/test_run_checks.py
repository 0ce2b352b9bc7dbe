"""What the data lack and what the machine lacks is one line before training starts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from rec2pm_jax.config import ComputeConfig, Config, ModelConfig
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.devices import check_platform, describe_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training import run_checks
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.run_checks import check_features, fit_to_data, open_training_data
from rec2pm_jax.training.trained_run import _serving_config


def data_with(types=(), has_times=True):
    return SimpleNamespace(
        path="data/log",
        content_hash="hash",
        info={},
        event_types=list(types),
        has_times=has_times,
        num_items=50,
        num_users=3,
    )


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            {"event_types": 1},
            {"types": ("view", "cart", "buy")},
            "=1, .* 3 event types .view, cart",
        ),
        ({"event_types": 4}, {"types": ("view", "cart", "buy")}, "set it to 3, or to 0"),
        ({"event_types": 3}, {}, "data/log has no event types: set it to 0"),
        (
            {"backbone": "hstu", "relative_bias": "position_time"},
            {"has_times": False},
            "data/log has no times.*use position",
        ),
        (
            {"use_times": True},
            {"has_times": False},
            "use_times=true, but data/log has no times.*set it to false",
        ),
    ],
)
def test_a_feature_that_the_data_lack_is_refused_before_training(tmp_path, model, data, message):
    config, dataset = Config(model=ModelConfig(**model)), data_with(**data)
    with pytest.raises(UserError, match=message) as found:
        train_and_evaluate(config, dataset, make_method(config, 50), tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has_times", [False, True])
def test_times_are_used_where_the_data_have_them(has_times):
    """Unless the configuration says otherwise."""
    dataset = data_with(has_times=has_times)
    fitted = fit_to_data(Config(), dataset)
    assert fitted.model.use_times is fitted.uses_times is has_times
    assert dataclasses.replace(fitted, model=Config().model) == Config()
    assert fit_to_data(fitted, dataset) == fitted
    off = Config(model=ModelConfig(use_times=False))
    assert fit_to_data(off, dataset) == off and not off.reads_times


@pytest.mark.parametrize("count", [0, 3])
def test_all_types_or_none_are_read(count):
    check_features(Config(model=ModelConfig(event_types=count)), data_with(("view", "cart", "buy")))


def test_a_log_with_a_new_event_type_does_not_clamp_it_when_a_run_is_loaded(monkeypatch):
    config = Config(model=ModelConfig(event_types=2))
    monkeypatch.setattr(run_checks, "open_dataset", lambda _: data_with(("view", "cart", "buy")))
    meta = {"data_hash": "hash", "config": to_dict(config)}
    with pytest.raises(UserError, match="event_types=2, but data/log has 3"):
        open_training_data("data/log", "runs/x", meta)


def test_a_platform_that_is_not_here_is_refused(tmp_path):
    check_platform(ComputeConfig(platform="cpu"))
    for name in ("gpu", "tpu"):
        with pytest.raises(
            UserError, match=f"platform={name}, but .* computes on . x cpu: leave it"
        ):
            check_platform(ComputeConfig(platform=name))


def test_a_run_of_another_platform_is_served_on_this_one():
    config = Config(compute=ComputeConfig(platform="tpu"))
    assert _serving_config(config, None).compute.platform == "auto"


def test_devices_are_named_with_their_number():
    assert describe_devices() == f"{jax.device_count()} x cpu"


@pytest.mark.parametrize("platform", ["cuda", "none_such"])
def test_a_platform_of_the_environment_without_devices_is_one_line(platform, tmp_path):
    code = (
        "import jax\n"
        "from absl import flags\n"
        "from rec2pm_jax import cli\n"
        "cli.run(lambda argv: jax.numpy.zeros(3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--compilation_cache="],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"error: JAX finds no device for JAX_PLATFORMS={platform}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optim", "learning_rate", float("inf")),
        ("optim", "weight_decay", 1e300),
        ("loss", "temperature", float("nan")),
        ("train", "steps", 10**30),
        ("train", "seed", -1),
        ("train", "seed", 2**32),
        ("data", "segments", 2**31),
        ("data", "segment", 10**9),
    ],
)
def test_numbers_that_devices_cannot_hold_are_refused(section, field, value):
    with pytest.raises(UserError, match=f"config.{section}.*{field}"):
        config = Config()
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        dataclasses.replace(config, **{section: changed})
