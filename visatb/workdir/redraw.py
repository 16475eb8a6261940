"""Test figures as other questions of the same kind would give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visatb.workdir.scores import Cell

Array = NDArray[np.float64]
DRAWS = 2000


def redraw(rows: list[list[list[Cell] | None]], points: Array, rng: np.random.Generator) -> Array | None:
    """Figures drawn anew, float64[methods, runs, metrics, DRAWS]; None where cells say nothing of their error."""
    flat = [row for of_method in rows for row in of_method]
    present = [row for row in flat if row is not None]
    if len(present) < len(flat) or not present or not present[0] or len(flat) != points.shape[0] * points.shape[1]:
        return None
    ids = present[0][0].ids
    if ids and all(cell.ids == ids for row in present for cell in row):
        return _resample(present, rng).reshape(*points.shape, DRAWS)
    spread = np.array([[np.nan if cell.stderr is None else cell.stderr for cell in row] for row in present])
    if not np.isfinite(spread).all():
        return None
    # Without the questions it is not known what the runs of a method share; that they err alike is the safe side.
    noise = rng.normal(size=(points.shape[0], 1, points.shape[2], DRAWS))
    return np.asarray(points[..., None] + spread.reshape(points.shape)[..., None] * noise)


def _resample(cells: list[list[Cell]], rng: np.random.Generator) -> Array:
    n = len(cells[0][0].ids)
    values = np.array([[cell.values for cell in row] for row in cells])
    weights = np.array([[cell.weights for cell in row] for row in cells])
    drawn = np.empty((*values.shape[:2], DRAWS))
    for start in range(0, DRAWS, 100):  # 100 draws at once bound the memory at large test sets
        stop = min(start + 100, DRAWS)
        picked = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(stop - start)], axis=-1)
        totals = weights @ picked
        drawn[..., start:stop] = (values * weights) @ picked / np.where(totals > 0, totals, np.inf)
    return drawn
