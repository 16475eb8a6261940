"""`groups: auto`: tasks that the mini model treats alike become one group.

The paper balances M³IT's tasks in groups and leaves open how to find them (section 5). Here each task is represented by
the mean state in which the mini model begins its answers (llava/infer/represent.py); from these, less their common
mean, average linkage on cosine distances builds a tree, which is cut into as many groups as asked for, or into as many
as have the best mean silhouette.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.answers import safe_name
from eval.errors import EvaluationError

Matrix = NDArray[np.float64]


def group_tasks(vectors: Mapping[str, Sequence[float]], asked: int | str) -> dict[str, Any]:
    """The tree of tasks and the groups it is cut into: what the work folder's `grouping.json` holds.

    Args:
        vectors: each task's representation, all of one length.
        asked: the number of groups, or "auto".

    Returns:
        tasks: in their order; distances: float[N, N]; tree: N − 1 merges [left, right, height, leaves] in the order of
        their heights, leaves numbered as tasks and merge m as N + m; silhouettes: number of groups → mean silhouette;
        groups: {name: [tasks]}.

    Raises:
        EvaluationError: representations that cannot be told apart or are not numbers.
    """
    from scipy.cluster.hierarchy import average, cut_tree
    from scipy.spatial.distance import squareform

    tasks = list(vectors)
    distances = _cosine_distances(np.array([vectors[task] for task in tasks], dtype=np.float64))
    tree = average(squareform(distances, checks=False))
    cuts = {count: cut_tree(tree, count)[:, 0] for count in range(2, len(tasks))}
    silhouettes = {count: _silhouette(distances, labels) for count, labels in cuts.items()}
    count = max(silhouettes, key=lambda number: silhouettes[number]) if asked == "auto" else int(asked)
    members: dict[int, list[str]] = {}
    for task, label in zip(tasks, cuts[count], strict=True):
        members.setdefault(int(label), []).append(task)
    return {
        "asked": asked,
        "tasks": tasks,
        "distances": distances.tolist(),
        "tree": tree.tolist(),
        "silhouettes": {str(number): value for number, value in silhouettes.items()},
        "groups": _named(list(members.values()), tasks),
    }


def _cosine_distances(vectors: Matrix) -> Matrix:
    """1 − cosine between the rows, less their common mean: `float[N, h] → float[N, N]`."""
    from scipy.spatial.distance import pdist, squareform

    centred = vectors - vectors.mean(0)
    lengths = np.linalg.norm(centred, axis=1)
    if not np.isfinite(lengths).all() or (lengths <= 1e-12 * np.abs(vectors).max()).any():
        raise EvaluationError("groups: auto: the mini model's representations of the tasks cannot be told apart")
    distances: Matrix = squareform(np.clip(pdist(centred, "cosine"), 0, 2))
    return distances


def _silhouette(distances: Matrix, labels: NDArray[np.int64]) -> float:
    """Mean over tasks of (b − a)/max(a, b) (Rousseeuw 1987): a to its own group, b to the nearest other; 0 if alone."""
    values = []
    for index, label in enumerate(labels):
        own = labels == label
        if own.sum() == 1:
            values.append(0.0)
            continue
        inside = distances[index, own].sum() / (own.sum() - 1)
        outside = min(distances[index, labels == other].mean() for other in set(labels) - {label})
        values.append(float((outside - inside) / max(inside, outside)) if max(inside, outside) > 0 else 0.0)
    return float(np.mean(values))


def _named(groups: list[list[str]], tasks: Sequence[str]) -> dict[str, list[str]]:
    """A name for each group: its only task's, `a+b`, or `a+3` for a and three others."""
    taken = {safe_name(task).lower() for task in tasks}
    named = {}
    for members in groups:
        name = "+".join(members) if len(members) <= 2 else f"{members[0]}+{len(members) - 1}"
        while len(members) > 1 and safe_name(name).lower() in taken:
            name += "_"
        taken.add(safe_name(name).lower())
        named[name] = members
    return named
