"""What the memory of a trained model holds: attention, a map of users, and some portraits."""

from __future__ import annotations

from typing import Any

import numpy as np

from launch.experiments.run import Run
from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.evaluation.anatomy import (
    attention_shares,
    dominant_groups,
    nearest_items,
    neighbour_agreement,
)
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.targets import final_rows, plan_rows, select_targets
from rec2pm_jax.runs import Result, TrainedModel, evaluate_model

CATEGORIES = 8  # the largest ones, by which users are told apart
PORTRAITS = 4


def examine_anatomy(run: Run, model: TrainedModel, dataset: Dataset) -> list[Result]:
    """Return one evaluation whose record has `anatomy`.

    That is attention on memory, the plane of users' memories, and the nearest items of some users.
    """
    method, params = model.method, model.params
    result = evaluate_model(model, dataset, split=run.split, swap=False)
    types = method.config.loss.target_types
    rule = bound_rule(method.config.data, dataset, target_types=types)
    _, _, histories, targets = select_targets(dataset, rule, run.split)
    rows = plan_rows(targets, method, None)
    states = compute_memories(method, params, histories, rows, method.memory_kind, batch_size=128)
    final = final_rows(rows)
    memories = np.asarray(states.memory[final][:, -method.config.method.slots :], np.float64)
    flat = memories.reshape(len(memories), -1)

    names, groups = _group_by_category(dataset)
    labels = dominant_groups(groups, histories, rows.user[final], rows.start[final], len(names))
    _, _, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    plane = (flat - flat.mean(axis=0)) @ axes[:2].T
    by_updates = np.argsort(-rows.updates[final], kind="stable")
    shown = by_updates[:: max(1, len(final) // PORTRAITS)][:PORTRAITS]
    table = np.asarray(method.network.table(params), np.float64)
    portraits = []
    for user, items in zip(shown, nearest_items(memories, table)[shown], strict=True):
        first, end = histories.offsets[rows.user[final[user]]], rows.start[final[user]]
        archived = histories.ids[first : first + end]
        portraits.append(_portray(archived, items, dataset.items.titles))
    result.record["anatomy"] = {
        "attention": attention_shares(method, params, histories, rows),
        "plane": np.round(plane, 3).tolist(),
        "labels": [names[label] for label in labels],
        "neighbours": neighbour_agreement(flat, labels),
        "users": portraits,
    }
    return [result]


def _group_by_category(dataset: Dataset) -> tuple[list[str], np.ndarray]:
    """Return the categories with most events, and each item's index among them [V]."""
    categories = np.array([str(name) for name in dataset.items.categories])
    names, index = np.unique(categories[1:], return_inverse=True)
    weight = np.bincount(index, weights=dataset.items.counts[1:])
    largest = np.argsort(-weight, kind="stable")[:CATEGORIES]
    place = np.full(len(names), CATEGORIES)
    place[largest] = np.arange(len(largest))
    return [str(names[i]) for i in largest], np.concatenate([[CATEGORIES], place[index]])


def _portray(archived: np.ndarray, items: np.ndarray, titles: Any) -> dict[str, Any]:
    """Describe a user by the most frequent archived items and the items nearest to each slot.

    Args:
      archived: item ids, int [events].
      items: nearest items of every slot, int [slots, items].
      titles: of all items.
    """
    frequent = np.argsort(-np.bincount(archived, minlength=len(titles)), kind="stable")[:5]
    return {
        "archived_events": len(archived),
        "bought_most": [titles[i] for i in frequent],
        "slots": [[titles[i] for i in slot] for slot in items],
    }
