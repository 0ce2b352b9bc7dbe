"""The compiler's report on a program: a record, a screen of text, and a table."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import Any

import jax

from launch.compiled import hlo
from launch.compiled.chips import Chip
from launch.compiled.costs import count_costs
from launch.compiled.programs import Program
from rec2pm_jax.errors import UserError

COST_SOURCE = (
    "optimised HLO of the scanned build, bodies of loops times their trip counts, kernels by their "
    "CostEstimate; FLOPs agree with XLA's of an unrolled build, bytes are up to 40 % fewer, as of "
    "what a fusion slices only the slice counts"
)

_MEMORY = ("argument", "temp", "peak", "hbm_limit")
COLUMNS = (
    "arguments",
    "temporaries",
    "accessed",
    "of it HBM",
    "collectives",
    "products",
    "filled up",
    "HBM",
    "interconnect",
)


def compile_program(program: Program) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compile a program and return it with its wall and CPU seconds, as fields of the record.

    Raises:
      UserError: the program does not fit the chip.
    """
    lowered = jax.jit(program.function, donate_argnums=program.donated).lower(*program.arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        used = re.search(r"Used [^\n]* exceeded[^\n]*", message, re.IGNORECASE)
        reason = (used[0] if used else message.splitlines()[0]).rstrip(".")
        advice = "Lower --batch_per_chip, or raise config.compute.accumulate."
        if "vmem" in reason:  # a kernel's memory: 16 MiB of a v4, 128 of the others
            advice = "Set config.compute.attention=dense, or read fewer events at once."
        raise UserError(f"The program does not fit the chip: {reason}. {advice}") from error
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return compiled, {"compile_s": round(wall, 2), "compile_cpu_s": round(cpu, 2)}


def make_record(compiled: Any, chip: Chip, chips: int) -> dict[str, Any]:
    """Return the record of a program, without topology and configuration.

    Args:
      compiled: a `jax.stages.Compiled`.
      chip: what one chip can do.
      chips: how many chips run the program together. All numbers of the record are of one.
    """
    module = hlo.parse(compiled.as_text())
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    costs = count_costs(module, chip.mxu, chips)
    seconds = {
        "compute": costs.product_flops / chip.flops,
        "compute_effective": costs.padded_flops / chip.flops,
        "hbm": costs.hbm_bytes / chip.hbm,
        "ici": costs.wire_bytes / chip.ici,
    }
    bound = max(("compute_effective", "hbm", "ici"), key=lambda name: seconds[name])
    return {
        "chips": chips,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "hbm_limit_bytes": chip.hbm_limit,
        "flops": costs.flops,
        "product_flops": costs.product_flops,
        "padded_product_flops": costs.padded_flops,
        "bytes_accessed": costs.bytes_accessed,
        "hbm_bytes": costs.hbm_bytes,
        "loops_counted_once": costs.unknown_loops,
        "cost_source": COST_SOURCE,
        "xla_loops_counted_once": {
            "flops": analysis.get("flops"),
            "bytes_accessed": analysis.get("bytes accessed"),
        },
        "collectives": {
            kind: {"count": count, "bytes": size}
            for kind, (count, size) in sorted(costs.collectives.items())
        },
        "roofline_s": seconds,
        "bound": bound.removesuffix("_effective"),
        "figures": {
            "peak_flops_bf16": chip.flops,
            "matrix_unit": chip.mxu,
            "hbm_bytes_per_s": chip.hbm,
            "ici_bytes_per_s": chip.ici,
        },
        "largest_buffers": find_largest_buffers(module),
    }


def find_largest_buffers(module: hlo.Module, count: int = 8) -> list[dict[str, Any]]:
    """Return the largest arrays in HBM that instructions make, one entry for all of a shape."""
    found = defaultdict(list)
    fused = {
        name
        for computation in module.computations.values()
        for i in computation.instructions
        if i.opcode == "fusion"
        for name in i.called()
    }
    for name, computation in module.computations.items():
        if name in fused:
            continue
        for i in computation.instructions:
            if i.opcode in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
                continue
            for shape in i.shapes:
                if not shape.space:
                    found[str(shape), shape.bytes].append(i.op_name)
    largest = sorted(found.items(), key=lambda item: -item[0][1])[:count]
    return [
        {"shape": shape, "bytes": size, "made_by": len(names), "op": _shorten(max(names, key=len))}
        for (shape, size), names in largest
    ]


def _shorten(op_name: str) -> str:
    return "/".join(op_name.split("/")[-3:])


def format_text(record: dict[str, Any]) -> str:
    """Return a record as a screen of text."""
    seconds, figures = record["roofline_s"], record["figures"]
    memory = {name: _format_bytes(record[f"{name}_bytes"]) for name in _MEMORY}
    times = {name: _format_ms(value) for name, value in seconds.items()}
    share = 100 * record["peak_bytes"] / record["hbm_limit_bytes"]
    lines = [
        f"{record['topology']}, {record['chips']} chips, step {record['step']}: compiled in "
        f"{record['compile_s']:.0f} s ({record['compile_cpu_s']:.0f} of CPU). Compiled, not measured; "
        "numbers are of one chip.",
        f"memory     {memory['argument']} arguments + {memory['temp']} temporaries, "
        f"peak {memory['peak']} of {memory['hbm_limit']} ({share:.0f} %)",
        f"work       {record['flops'] / 1e9:.1f} GFLOP ({record['product_flops'] / 1e9:.1f} in "
        f"products), {record['bytes_accessed'] / 1e9:.2f} GB accessed, of these "
        f"{record['hbm_bytes'] / 1e9:.2f} GB in HBM",
        f"roofline   products {times['compute']} at {figures['peak_flops_bf16'] / 1e12:.0f} "
        f"TFLOP/s, {times['compute_effective']} with shapes filled up to the matrix unit's "
        f"{figures['matrix_unit']}",
        f"           HBM {times['hbm']} at {figures['hbm_bytes_per_s'] / 1e9:.0f} GB/s, "
        f"interconnect {times['ici']} at {figures['ici_bytes_per_s'] / 1e9:.0f} GB/s; "
        f"bound by {record['bound']}",
    ]
    for kind, value in record["collectives"].items():
        size = _format_bytes(value["bytes"])
        lines.append(f"collective {kind}: {value['count']:.0f}, {size}")
    if not record["collectives"]:
        lines.append("collective none")
    for buffer in record["largest_buffers"]:
        lines.append(
            f"buffer     {_format_bytes(buffer['bytes'])} {buffer['shape']}, made by "
            f"{buffer['made_by']} instructions, {buffer['op'] or 'a copy'}"
        )
    if record["loops_counted_once"]:
        lines.append(
            f"{record['loops_counted_once']} loops whose trip count depends on data are counted once "
            "(chunks of positions in the loss)"
        )
    lines.append(f"costs from {record['cost_source']}")
    return "\n".join(lines)


def format_columns(record: dict[str, Any]) -> list[str]:
    """Return the cells of `COLUMNS` for one record; all numbers are of one chip."""
    seconds = record["roofline_s"]
    sent = sum(value["bytes"] for value in record["collectives"].values())
    return [
        _format_bytes(record["argument_bytes"]),
        _format_bytes(record["temp_bytes"]),
        f"{record['bytes_accessed'] / 1e9:.2f} GB",
        f"{record['hbm_bytes'] / 1e9:.2f} GB",
        f"{sent / 1e6:.1f} MB",
        *(_format_ms(seconds[name]) for name in ("compute", "compute_effective", "hbm", "ici")),
    ]


def format_table(records: list[dict[str, Any]]) -> str:
    """Return several topologies side by side, as Markdown; all numbers are of one chip."""
    header = ["topology", "items", *COLUMNS, "compiling (CPU)"]
    rows = [header, ["---"] * len(header)]
    for record in records:
        compiling = f"{record['compile_s']:.0f} s ({record['compile_cpu_s']:.0f})"
        cells = [record["topology"], f"{record['items']:,}"]
        rows.append([*cells, *format_columns(record), compiling])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _format_bytes(size: float) -> str:
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << scale:
            return f"{size / (1 << scale):.2f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _format_ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
