"""What a run prints: its settings, its parameters, and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.training.progress import TARGET, Progress
from rec2pm_jax.typing import Params


class ProgressBar:
    """One line with the step, the remaining time, tokens/s, each loss and the last validation."""

    def __init__(self, total: int, step: int, show: bool) -> None:
        # If the output is a file, every redrawing is a new line of it.
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=total, initial=step, unit="step", disable=not show, mininterval=interval
        )

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def describe(self, progress: Progress) -> None:
        """Show the newest numbers."""
        losses = {k: v for k, v in progress.means.items() if k.startswith("loss/")}
        parts = [f"{name.removeprefix('loss/')} {value:.4f}" for name, value in losses.items()]
        if progress.tokens_per_s:
            parts.insert(0, f"{progress.tokens_per_s:,.0f} tokens/s")
        if progress.last:
            parts.append(f"val {TARGET} {progress.last[TARGET]:.4f}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


def format_parameters(params: Params) -> str:
    """Return a table of parameters: name, shape, dtype, count, and the total. Shapes suffice."""
    rows = [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            "x".join(map(str, leaf.shape)) or "scalar",
            str(leaf.dtype),
            leaf.size,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    rows.append(("total", "", "", sum(size for *_, size in rows)))
    width = max(len(name) for name, *_ in rows)
    return "\n".join(
        f"{name:<{width}}  {shape:>14}  {dtype:<8}  {count:>12,}"
        for name, shape, dtype, count in rows
    )


def format_settings(config: Config, facts: Mapping[str, Any]) -> str:
    """Return `facts` about a run and its configuration, one line for each fact and section."""
    rows = {name: str(value) for name, value in facts.items()}
    for section, fields in to_dict(config).items():
        rows[section] = " ".join(f"{name}={value}" for name, value in fields.items())
    return "\n".join(f"{name:<10} {value}" for name, value in rows.items())
