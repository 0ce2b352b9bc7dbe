"""Checkpoints of a sharded run: read by other numbers of devices, served whole, and when disks fail."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.devices import select_table_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import config_hash, make_method
from rec2pm_jax.nn.catalogue.sharded_table import is_spread
from rec2pm_jax.training.checkpoint import Checkpoints, load_for_inference
from rec2pm_jax.training.partition import make_partition
from tests.helpers.sharded import CONFIG, ITEMS, by_id, config_of
from tests.helpers.train_fakes import make_iterator

SMALL = config_of(CONFIG, method={"name": "recent"})


def partition_of(devices):
    return make_partition(config_of(SMALL, compute={"devices": devices}), make_method(SMALL, ITEMS))


@pytest.fixture(scope="module")
def trained():
    """A state over 4 devices whose optimizers hold something, too."""
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), partition_of(4).init())


def save(workdir, state, step):
    meta = {
        "step": step,
        "best_step": step,
        "num_items": ITEMS,
        "config": to_dict(SMALL),
        "config_hash": config_hash(SMALL),
        "data_hash": "data",
    }
    checkpoints = Checkpoints(workdir, 2)
    try:
        checkpoints.save(state, make_iterator(4), meta)
    finally:
        checkpoints.close()


def restore(workdir, partition):
    checkpoints = Checkpoints(workdir, 2)
    try:
        abstract = partition.abstract
        return checkpoints.restore(lambda meta: abstract, make_iterator(4), lambda meta: None)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_number_of_devices_restores_the_state_exactly(trained, tmp_path, devices):
    save(tmp_path, trained, 1)
    partition = partition_of(devices)
    state = restore(tmp_path, partition).state
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(trained))
    table = state.params["embedding"]["item_embedding"]
    assert len(table.sharding.device_set) == devices
    assert table.addressable_shards[0].data.shape[0] == len(table) // devices


def test_serves_a_whole_table_in_the_order_of_ids(trained, tmp_path):
    save(tmp_path, trained, 1)
    config, params, _ = load_for_inference(tmp_path)
    assert config == SMALL
    jax.tree.map(
        np.testing.assert_array_equal, params, by_id(jax.device_get(trained.params), SMALL)
    )


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_serves_a_table_over_devices(trained, tmp_path, devices):
    """Each device gets its rows; what is replicated in training comes to one device."""
    save(tmp_path, trained, 1)
    _, params, _ = load_for_inference(tmp_path, "best", lambda _: jax.devices()[:devices])
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(trained.params))
    table = params["embedding"].pop("item_embedding")
    assert is_spread(table) and len(table.sharding.device_set) == devices
    assert not any(shard.data.shape == table.shape for shard in table.addressable_shards[1:])
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("table", "wanted", "message"),
    [
        ("sharded", 3, "over 3 devices: their number must divide 256"),
        ("sharded", 9, "--devices=9, but there are 8 devices"),
        ("whole", 2, "--devices=2, but this run has config.model.table=whole"),
    ],
)
def test_devices_that_cannot_hold_the_table_are_refused(table, wanted, message):
    config = config_of(SMALL, model={"table": table})
    with pytest.raises(UserError, match=message):
        select_table_devices(config, wanted)


@contextlib.contextmanager
def full_disk():
    """Writes beyond 1 KB of a file fail, as on a full disk."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_a_clear_error_and_older_checkpoints_stay(trained, tmp_path):
    save(tmp_path, trained, 1)
    with full_disk():
        with pytest.raises(UserError, match="Cannot write .*checkpoints/2: .*Older .* untouched"):
            save(tmp_path, trained, 2)
    restored = restore(tmp_path, partition_of(4))
    assert restored.meta["step"] == 1
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(restored.state), jax.device_get(trained)
    )


@pytest.fixture
def powerless():
    """Root may write anywhere; these tests may not."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_read_only_directory_is_a_clear_error(tmp_path, powerless):
    with pytest.raises(UserError, match="Cannot write .*checkpoints: .*make it writable"):
        Checkpoints(tmp_path / "run", 2)
