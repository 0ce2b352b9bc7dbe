"""What the memory of a trained model holds: attention, a map of users, and some portraits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from launch.runs import Result, Trained, assess
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.evaluate.anatomy import (
    attention_shares,
    dominant_groups,
    nearest_items,
    neighbour_agreement,
)
from rec2pm_jax.evaluate.memory_kinds import default_memory
from rec2pm_jax.evaluate.memory_states import compute_memories
from rec2pm_jax.evaluate.targets import final_rows, plan_rows, select_targets

if TYPE_CHECKING:
    from launch.suites import Run

CATEGORIES = 8  # by which users are told apart


def anatomy(run: Run, trained: Trained, dataset: Dataset) -> list[Result]:
    """One record with `anatomy`: attention, the plane of memories, and nearest items of some users."""
    method, params = trained.method, trained.params
    result = assess(trained, dataset, split=run.split, swap=False)
    rule = bound_rule(method.config.data, dataset)
    _, _, histories, targets = select_targets(dataset, rule, run.split)
    rows = plan_rows(targets, method, None)
    memory = default_memory(method.config)
    states = compute_memories(method, params, histories, rows, memory, batch_size=128)
    final = final_rows(rows)
    memories = states.memory[final][:, -method.config.method.slots :].astype(np.float64)
    flat = memories.reshape(len(memories), -1)

    names, groups = _largest_categories(dataset)
    labels = dominant_groups(groups, histories, rows.user[final], rows.start[final], len(names))
    _, _, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    plane = (flat - flat.mean(axis=0)) @ axes[:2].T
    shown = np.argsort(-rows.updates[final], kind="stable")[:: max(1, len(final) // 4)][:4]
    result.record["anatomy"] = {
        "attention": attention_shares(method, params, histories, rows),
        "plane": np.round(plane, 3).tolist(),
        "labels": [names[label] for label in labels],
        "neighbours": neighbour_agreement(flat, labels),
        "users": _portraits(trained, dataset, histories, rows, final, memories, shown),
    }
    return [result]


def _largest_categories(dataset: Dataset) -> tuple[list[str], np.ndarray]:
    """The CATEGORIES categories with most events, and each item's index among them [V]."""
    categories = np.array([str(name) for name in dataset.items.categories])
    names, index = np.unique(categories[1:], return_inverse=True)
    weight = np.bincount(index, weights=dataset.items.counts[1:])
    largest = np.argsort(-weight, kind="stable")[:CATEGORIES]
    place = np.full(len(names), CATEGORIES)
    place[largest] = np.arange(len(largest))
    return [str(names[i]) for i in largest], np.concatenate([[CATEGORIES], place[index]])


def _portraits(trained, dataset, histories, rows, final, memories, shown) -> list[dict]:
    """For some users: what they bought most before the raw window, and the items of each slot."""
    table = np.asarray(trained.method.network.table(trained.params), np.float64)
    near = nearest_items(memories, table)[shown]
    titles = dataset.items.titles
    portraits = []
    for user, items in zip(shown, near, strict=True):
        first, end = histories.offsets[rows.user[final[user]]], rows.start[final[user]]
        bought = np.bincount(histories.ids[first : first + end], minlength=len(titles))
        portraits.append(
            {
                "archived_events": int(end),
                "bought_most": [titles[i] for i in np.argsort(-bought, kind="stable")[:5]],
                "slots": [[titles[i] for i in slot] for slot in items],
            }
        )
    return portraits
