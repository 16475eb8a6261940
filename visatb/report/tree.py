"""The tree of tasks that `groups: auto` was read from: where its leaves and joins lie, whatever draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Join:
    """Two branches, from (height, row) `left` and `right`, meeting at `height`: `inside` a group or between groups."""

    left: tuple[float, float]
    right: tuple[float, float]
    height: float
    inside: bool


@dataclass(frozen=True)
class Tree:
    """Tasks from top to bottom, the joins, and the height at which the tree was cut into its groups."""

    leaves: list[str]
    joins: list[Join]
    cut: float


def read_tree(found: Mapping[str, Any]) -> Tree:
    """The tree of a `grouping.json`."""
    tasks, merges = list(found["tasks"]), list(found["tree"])
    count = len(tasks)

    def below(node: int) -> list[int]:
        if node < count:
            return [node]
        left, right = merges[node - count][:2]
        return [*below(int(left)), *below(int(right))]

    order = below(count + len(merges) - 1)
    positions: dict[int, tuple[float, float]] = {leaf: (0.0, float(row)) for row, leaf in enumerate(order)}
    kept = count - len(found["groups"])  # merges that lie inside groups
    joins = []
    for number, (left, right, height, _) in enumerate(merges):
        ends = positions[int(left)], positions[int(right)]
        positions[count + number] = (float(height), (ends[0][1] + ends[1][1]) / 2)
        joins.append(Join(ends[0], ends[1], float(height), number < kept))
    heights = [0.0, *(join.height for join in joins)]
    return Tree([tasks[leaf] for leaf in order], joins, (heights[kept] + heights[kept + 1]) / 2)
