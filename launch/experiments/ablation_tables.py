"""Tables of suite ablation, made from rows alone."""

from __future__ import annotations

from collections.abc import Sequence

from launch.experiments import tables
from launch.experiments.rows import Row, by_label

# What the page calls a variant -> its name in the suite.
RECIPE = {
    "default recipe": "recipe",
    "without live memories": "without live memories",
    "live memories only": "live memories only",
    "without identity initialisation": "without identity initialisation",
    "without the running mean": "plain memory",
    "paper's plain recipe, with times and own items": "plain recipe",
    "without times": "without times",
    "without exact memory": "without exact memory",
    "without exact memory and repeat head": "without own items",
}
SIZES = {
    "default: C = 4, E = 94, S = 16, R = 1, window 1, overwrite": "recipe",
    **{f"C = {c} slots": f"C = {c}" for c in (1, 2, 8, 16)},
    **{f"exact memory of E = {e} items": f"E = {e}" for e in (32, 64, 128)},
    **{f"segments of S = {s} events": f"S = {s}" for s in (10, 25, 50)},
    **{f"R = {r} events stay raw": f"R = {r}" for r in (8, 16)},
    "reference pass sees 2 segments": "reference window of 2",
    "reference pass sees 4 segments": "reference window of 4",
    "reference pass sees the whole window": "reference pass without window",
    "memories append": "append",
}
# (what readers read in training, what targets read) -> variant by lambda.
_CONSISTENCY = {
    "live memory in half of the cases": {
        "3": "lambda = 3",
        "1": "lambda = 1",
        "0.3": "lambda = 0.3",
        "0.1": "recipe",
        "0": "without L_con",
    },
    "reference memory only, as in the paper": {
        "0.1": "without live memories",
        "0": "without live memories or L_con",
    },
}


def tabulate_variants(rows: Sequence[Row], variants: dict[str, str]) -> list[str]:
    """Return NDCG@10 of variants, rolled forward and in one pass, and the ratio to the recipe.

    Args:
      rows: of suite ablation.
      variants: label -> name of the variant.
    """
    found, body = by_label(rows), []
    base = found["recipe"]
    for label, name in variants.items():
        one_time = found.get(f"{name} (one-time)")
        in_one_pass = f"{100 * one_time.mean():.2f}" if one_time else "-"
        ratio = tables.format_ratio(found[name], base)
        body.append([label, f"{100 * found[name].mean():.2f}", ratio, in_one_pass])
    return tables.format_markdown(["variant", "NDCG@10", "/ default", "memory in one pass"], body)


def tabulate_consistency(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 by the weight of L_con, the memory that readers train on, and that they read."""
    found, body = by_label(rows), []
    weights = list(_CONSISTENCY["live memory in half of the cases"])
    for trained_on, variants in _CONSISTENCY.items():
        for memory, suffix in (("rolled forward", ""), ("in one pass", " (one-time)")):
            values = {w: found[f"{name}{suffix}"].mean() for w, name in variants.items()}
            cells = [f"{100 * values[w]:.2f}" if w in values else "-" for w in weights]
            body.append([f"{trained_on}; evaluated {memory}", *cells])
    return tables.format_markdown(["trained on", *(f"lambda {w}" for w in weights)], body)
