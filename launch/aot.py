"""Compile a step for TPUs that need not exist and report what it needs.

    python -m launch.aot --topology=v5e:1x1 --config=paper_merrec_hstu \\
        --json=aot.json --step=train --items=20000
    python -m launch.aot --topology=v5e:2x4,v5e:8x8,v5e:16x16 --items_per_chip=2148438 \\
        --batch_per_chip=8 --config=industrial --json=scaling.json

The real TPU compiler (libtpu) compiles on any Linux host. The report is of one chip: memory, work,
collectives, and how long products, memory and interconnect would take at their nominal speeds.
Everything is compiled, nothing measured. Users are divided over all chips along one axis. Of several
topologies there is a table, too.
"""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch.compiled import chips, programs, report
from launch.configs.flags import define_config, get_config, get_preset_file
from rec2pm_jax import cli
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.json_file import replaced_file
from rec2pm_jax.lock import only_writer_of
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.training.partition import make_mesh

_MAX_ITEMS = 2**31 - 2**20  # leaves room for the rows that pad a table


def define_flags() -> None:
    define_config()
    flags.DEFINE_list("topology", None, "Generation and shape, such as v5e:16x16; or several.")
    flags.DEFINE_string(
        "json", None, "File for the record, or the list of those of all topologies."
    )
    flags.DEFINE_enum("step", "train", list(programs.BUILDERS), "What to compile.")
    flags.DEFINE_integer("items", 0, "Items of the catalogue; 0: the preset's ITEMS, or 20,000.", 0)
    flags.DEFINE_integer("items_per_chip", 0, "The same for every chip, in place of --items.", 0)
    flags.DEFINE_integer(
        "batch_per_chip", 0, "Users per chip; 0: config.train.batch_size divided by the chips.", 0
    )
    flags.DEFINE_string("hlo", "", "File for the optimised HLO of one topology; empty: not kept.")
    flags.mark_flags_as_required(["topology", "json"])
    flags.register_multi_flags_validator(
        ["items", "items_per_chip"],
        lambda given: not (given["items"] and given["items_per_chip"]),
        "give one of the two",
    )
    flags.register_multi_flags_validator(
        ["topology", "hlo"],
        lambda given: len(given["topology"]) == 1 or not given["hlo"],
        "--hlo keeps one program: give one --topology",
    )


def main(_) -> None:
    args = flags.FLAGS
    # Shapes are all that is computed here. A TPU of this host, if any, stays free.
    jax.config.update("jax_platforms", "cpu")
    # Entries for a TPU cannot be read without one, and the time reported is that of compiling.
    jax.config.update("jax_enable_compilation_cache", False)
    config = programs.for_tpu(get_config())
    described = [(name, *chips.describe_topology(name)) for name in args.topology]
    records = []
    with only_writer_of(Path(args.json)):
        for name, chip, devices in described:
            records.append(_compile(config, name, chip, devices))
            print(report.format_text(records[-1]), flush=True)
            write_records(args.json, records if len(described) > 1 else records[0])
    if len(records) > 1:
        print(report.format_table(records))
    print(f"written to {args.json}")


def _compile(
    config: Config, topology: str, chip: chips.Chip, devices: list[jax.Device]
) -> dict[str, Any]:
    """Compile the step for one topology and return its record."""
    args = flags.FLAGS
    if args.batch_per_chip:
        train = dataclasses.replace(config.train, batch_size=args.batch_per_chip * len(devices))
        config = dataclasses.replace(config, train=train)
    items = args.items or args.items_per_chip * len(devices)
    items = items or _items_of_preset()
    if items > _MAX_ITEMS:
        raise UserError(f"{items:,} items are more than ids of 32 bits can name: {_MAX_ITEMS:,}.")
    program = programs.BUILDERS[args.step](config, items, make_mesh(devices))
    compiled, seconds = report.compile_program(program)
    if args.hlo:
        with replaced_file(Path(args.hlo)) as temporary:
            temporary.write_text(str(compiled.as_text()))
    return {
        "topology": topology,
        "step": args.step,
        "items": items,
        **seconds,
        **report.make_record(compiled, chip, len(devices)),
        "config": to_dict(config),
        "env": chips.environment(),
        "git_commit": git_commit(),
    }


def _items_of_preset() -> int:
    """Return `ITEMS` of the preset's file, the size of its catalogue: no dataset is at hand."""
    return runpy.run_path(str(get_preset_file())).get("ITEMS", 20_000)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
