"""The Beam pipelines write what the local path writes, by content hash."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from tests.helpers.data import random_log

pytestmark = pytest.mark.slow
pytest.importorskip("apache_beam", reason="needs pip install 'rec2pm_jax[beam]'")


@pytest.mark.parametrize(
    "options",
    [
        {"type_column": "kind"},
        {"type_column": "kind", "min_item_count": 30, "min_user_events": 20, "seed": 3},
        {"ties": "keep", "shards": 4},
        {"order_column": "at", "shards": 2},
    ],
)
def test_direct_runner_equals_the_local_path(tmp_path, options):
    from rec2pm_jax.data.prepare.beam import prepare_with_beam

    log = random_log().with_columns(at=pl.Series(np.random.default_rng(0).permutation(400)))
    (tmp_path / "log").mkdir()
    for i in range(3):
        log[i * 150 : (i + 1) * 150].write_csv(tmp_path / "log" / f"{i}.csv")
    infos = []
    for name, run in (("local", prepare), ("beam", prepare_with_beam)):
        found = run(
            PrepareOptions(
                "interactions",
                str(tmp_path / name),
                input=str(tmp_path / "log"),
                progress=False,
                **options,
            )
        )
        infos.append(found[0] if name == "local" else found)
    local, with_beam = infos
    for name in ("content_hash", "users", "events", "shards", "dropped_rows", "duplicate_rows"):
        assert with_beam[name] == local[name], name
    assert open_dataset(tmp_path / "beam").histories.lengths.sum() == local["events"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beam", "local", "log"]
