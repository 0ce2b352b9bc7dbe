"""The devices that this process computes on."""

from __future__ import annotations

from collections import Counter

import jax

from rec2pm_jax.config import ComputeConfig, Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.catalogue.sharded_table import check_shards


def find_devices() -> list[jax.Device]:
    """Return the devices of the job.

    Raises:
      UserError: JAX cannot start the platform that the environment asks for.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX's assertion has no message
        wanted = jax.config.values["jax_platforms"]
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={wanted}{reason and f' ({reason})'}: unset it, or "
            "install JAX for that platform, such as pip install 'rec2pm_jax[gpu]'."
        ) from error


def describe_devices() -> str:
    """Return the number, the platform and the kind of the devices of the job.

    >>> describe_devices()  # doctest: +ELLIPSIS
    '... x cpu'

    Raises:
      UserError: as `find_devices`.
    """
    kinds = Counter((device.platform, device.device_kind) for device in find_devices())
    return ", ".join(
        f"{count} x {platform}" + ("" if kind == platform else f" ({kind})")
        for (platform, kind), count in kinds.items()
    )


def check_platform(compute: ComputeConfig) -> None:
    """Check that programs are compiled for the platform that runs them.

    Raises:
      UserError: `compute.platform` names another one, or as `find_devices`.
    """
    found = describe_devices()
    if compute.platform not in ("auto", jax.default_backend()):
        raise UserError(
            f"config.compute.platform={compute.platform}, but this process computes on {found}: leave "
            "it at auto; it is for programs that are compiled here and run elsewhere (launch.aot)."
        )


def select_devices(compute: ComputeConfig) -> list[jax.Device]:
    """Return the devices of the job that share a training step.

    Args:
      compute: names how many.

    Raises:
      UserError: there are fewer, or the job has several processes and not all of their devices are
        named.
    """
    wanted, processes = compute.devices, jax.process_count()
    if not wanted or wanted == jax.device_count():
        return jax.devices()
    if processes > 1:
        raise UserError(
            f"config.compute.devices={wanted} in a job of {processes} processes: set it to 0, all "
            f"{jax.device_count()} devices of the job."
        )
    if wanted > jax.device_count():
        raise UserError(
            f"config.compute.devices={wanted}, but there are {jax.device_count()} devices."
        )
    return jax.devices()[:wanted]


def select_table_devices(config: Config, wanted: int | None) -> list[jax.Device]:
    """Return the devices that the item table of a trained run is divided over.

    Args:
      config: of the run.
      wanted: how many; None or 0 for all of the job.

    Raises:
      UserError: the table is not sharded and more than one device is asked for, there are fewer, they
        cannot share the table, or the job has several processes and not all of their devices are named.
    """
    if config.model.table != "sharded":
        if wanted is not None and wanted != 1:
            raise UserError(
                f"--devices={wanted}, but this run has config.model.table=whole: one device computes; "
                "leave the flag out."
            )
        return jax.local_devices()[:1]
    found, wanted = find_devices(), wanted or jax.device_count()
    if wanted > len(found):
        raise UserError(f"--devices={wanted}, but there are {len(found)} devices.")
    if jax.process_count() > 1 and wanted != len(found):
        raise UserError(
            f"--devices={wanted} in a job of {jax.process_count()} processes: leave the flag out, so "
            f"that all {len(found)} devices of the job take part."
        )
    check_shards(wanted, config.model.dim)
    return found[:wanted]
