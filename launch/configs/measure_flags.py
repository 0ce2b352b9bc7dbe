"""The flags of what evaluations measure, see `evaluation.spec.Measures`."""

from __future__ import annotations

from typing import Any

from absl import flags

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.spec import Measures


def define_measures() -> None:
    """Define --cutoffs, --list_metrics and --slices."""
    flags.DEFINE_list("cutoffs", [], "Also HR, NDCG, recall, precision and MAP at these places.")
    flags.DEFINE_boolean("list_metrics", False, "Also coverage, popularity, novelty, diversity.")
    flags.DEFINE_boolean("slices", False, "Also by history length, repeated or new item, item age.")


def get_measures(args: Any) -> Measures:
    """Return what the flags ask for.

    Raises:
      UserError: a cutoff is no whole number from 1 on, is too large, or occurs twice.
    """
    texts = [text.strip() for text in args.cutoffs]
    bad = [text for text in texts if not (text.isascii() and text.isdigit() and len(text) < 8)]
    if bad:
        raise UserError(
            f"--cutoffs={','.join(texts)}: {bad[0]!r} is no number of places; write whole numbers from "
            "1 on, for example 5,10,20."
        )
    return Measures(tuple(map(int, texts)), args.list_metrics, args.slices)
