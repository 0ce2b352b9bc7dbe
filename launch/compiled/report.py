"""What the compiler says about a program: a record, and a screen of text."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import Any

import jax

from launch.compiled import hlo
from launch.compiled.chips import Chip
from launch.compiled.costs import costs_of
from launch.compiled.programs import Program
from rec2pm_jax.errors import UserError

COST_SOURCE = (
    "optimised HLO of the scanned build, bodies of loops times their trip counts, kernels by their "
    "CostEstimate; FLOPs agree with XLA's of an unrolled build, bytes are up to 40 % fewer, as of "
    "what a fusion slices only the slice counts"
)


def compile_program(program: Program) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """(compiled, its wall and CPU seconds as fields of the record).

    Raises:
      UserError: the program does not fit the chip.
    """
    lowered = jax.jit(program.function, donate_argnums=program.donated).lower(*program.arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = re.search(r"Used [^\n]* exceeded[^\n]*", str(error), re.IGNORECASE)
        said = (said[0] if said else str(error).splitlines()[0]).rstrip(".")
        advice = "Lower --batch_per_chip, or raise config.compute.accumulate."
        if "vmem" in said:  # a kernel's: 16 MiB of a v4, 128 of the others
            advice = "Set config.compute.attention=dense, or read fewer events at once."
        raise UserError(f"The program does not fit the chip: {said}. {advice}") from error
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return compiled, {"compile_s": round(wall, 2), "compile_cpu_s": round(cpu, 2)}


def record(compiled: jax.stages.Compiled, chip: Chip, chips: int) -> dict[str, Any]:
    """Everything but topology and configuration; all numbers are of one chip."""
    module = hlo.parse(compiled.as_text())
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    costs = costs_of(module, chip.mxu, chips)
    seconds = {
        "compute": costs.product_flops / chip.flops,
        "compute_effective": costs.padded_flops / chip.flops,
        "hbm": costs.hbm_bytes / chip.hbm,
        "ici": costs.wire_bytes / chip.ici,
    }
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
        "bound": max(("compute_effective", "hbm", "ici"), key=seconds.get).removesuffix(
            "_effective"
        ),
        "figures": {
            "peak_flops_bf16": chip.flops,
            "matrix_unit": chip.mxu,
            "hbm_bytes_per_s": chip.hbm,
            "ici_bytes_per_s": chip.ici,
        },
        "largest_buffers": largest_buffers(module),
    }


def largest_buffers(module: hlo.Module, count: int = 8) -> list[dict[str, Any]]:
    """The largest arrays in HBM that instructions make, one line for all of a shape."""
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
        {"shape": shape, "bytes": size, "made_by": len(names), "op": _short(max(names, key=len))}
        for (shape, size), names in largest
    ]


def _short(op_name: str) -> str:
    return "/".join(op_name.split("/")[-3:])


def text(record: dict[str, Any]) -> str:
    """A screen for a reader."""
    seconds, figures = record["roofline_s"], record["figures"]
    peak, limit = record["peak_bytes"], record["hbm_limit_bytes"]
    lines = [
        f"{record['topology']}, {record['chips']} chips, step {record['step']}: compiled in "
        f"{record['compile_s']:.0f} s ({record['compile_cpu_s']:.0f} of CPU). Compiled, not measured; "
        "numbers are of one chip.",
        f"memory     {_bytes(record['argument_bytes'])} arguments + {_bytes(record['temp_bytes'])} "
        f"temporaries, peak {_bytes(peak)} of {_bytes(limit)} ({100 * peak / limit:.0f} %)",
        f"work       {record['flops'] / 1e9:.1f} GFLOP ({record['product_flops'] / 1e9:.1f} in "
        f"products), {record['bytes_accessed'] / 1e9:.2f} GB accessed, of these "
        f"{record['hbm_bytes'] / 1e9:.2f} GB in HBM",
        f"roofline   products {_ms(seconds['compute'])} at {figures['peak_flops_bf16'] / 1e12:.0f} "
        f"TFLOP/s, {_ms(seconds['compute_effective'])} with shapes filled up to the matrix unit's "
        f"{figures['matrix_unit']}",
        f"           HBM {_ms(seconds['hbm'])} at {figures['hbm_bytes_per_s'] / 1e9:.0f} GB/s, "
        f"interconnect {_ms(seconds['ici'])} at {figures['ici_bytes_per_s'] / 1e9:.0f} GB/s; "
        f"bound by {record['bound']}",
    ]
    for kind, value in record["collectives"].items():
        lines.append(f"collective {kind}: {value['count']:.0f}, {_bytes(value['bytes'])}")
    if not record["collectives"]:
        lines.append("collective none")
    for buffer in record["largest_buffers"]:
        lines.append(
            f"buffer     {_bytes(buffer['bytes'])} {buffer['shape']}, made by {buffer['made_by']} "
            f"instructions, {buffer['op'] or 'a copy'}"
        )
    if record["loops_counted_once"]:
        lines.append(
            f"{record['loops_counted_once']} loops whose trip count depends on data are counted once "
            "(chunks of positions in the loss; config.compute.loss_chunk_bytes large enough makes "
            "it one)"
        )
    lines.append(f"costs from {record['cost_source']}")
    return "\n".join(lines)


def table(records: list[dict[str, Any]]) -> str:
    """Several topologies side by side, as Markdown; all numbers are of one chip."""

    def cells(record: dict[str, Any]) -> list[str]:
        seconds = record["roofline_s"]
        sent = sum(value["bytes"] for value in record["collectives"].values())
        return [
            record["topology"],
            f"{record['items']:,}",
            _bytes(record["argument_bytes"]),
            _bytes(record["temp_bytes"]),
            f"{record['bytes_accessed'] / 1e9:.2f} GB",
            f"{record['hbm_bytes'] / 1e9:.2f} GB",
            f"{sent / 1e6:.1f} MB",
            *(_ms(seconds[name]) for name in ("compute", "compute_effective", "hbm", "ici")),
            f"{record['compile_s']:.0f} s ({record['compile_cpu_s']:.0f})",
        ]

    head = "topology | items | arguments | temporaries | accessed | of it HBM | collectives"
    head += " | products | filled up | HBM | interconnect | compiling (CPU)"
    rule = " | ".join("---" for _ in head.split("|"))
    rows = [head, rule, *(" | ".join(cells(record)) for record in records)]
    return "\n".join(f"| {row} |" for row in rows)


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << scale:
            return f"{size / (1 << scale):.2f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
