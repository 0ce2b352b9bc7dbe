"""matplotlib without a display, imported only when a figure is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rec2pm_jax.errors import UserError
from rec2pm_jax.json_file import replaced_file


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw into files.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("Figures need matplotlib: pip install 'rec2pm_jax[demo]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG and close it; an interrupted write leaves an older file intact.

    Args:
      figure: of matplotlib.
      path: file to write or replace.
    """
    with replaced_file(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot().close(figure)
