"""Guards for the page: what the proxies do to them, and what another λ might."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visatb.report import svg
from visatb.report.load import Run


def guards(run: Run) -> list[dict[str, Any]]:
    """Each guard's table: the proxies' scores and falls, and the units by how much their data harm it; empty: none."""
    found = _found(run)
    return [
        {
            "name": name,
            "metric": guard["metric"],
            "limit": f"{guard['limit']:g}",
            "count": guard["num_samples"],
            "base": svg.plain(guard["base"]["value"]),
            "rows": [
                {
                    "name": model,
                    "value": svg.plain(one["value"]),
                    "fall": _signed(one),
                    "over": one["fall"] > guard["limit"],
                }
                for model, one in guard["models"].items()
            ],
            "units": [(unit, _signed(one)) for unit, one in sorted(guard["units"].items(), key=_by_fall)],
        }
        for name, guard in found.items()
    ]


def columns(run: Run) -> dict[str, dict[str, float]]:
    """The guards' columns of the validation matrix: guard → model → score."""
    found = _found(run)
    return {
        name: {"base": guard["base"]["value"], **{model: one["value"] for model, one in guard["models"].items()}}
        for name, guard in found.items()
    }


def slopes(run: Run, units: list[str]) -> list[dict[str, Any]]:
    """For the what-if panel, of guards whose score is known to change with each unit's data: the fall by unit."""
    found = _found(run)
    return [
        {"name": name, "limit": guard["limit"], "falls": [guard["units"][unit]["fall"] for unit in units]}
        for name, guard in found.items()
        if set(units) <= set(guard["units"])
    ]


def _found(run: Run) -> dict[str, Any]:
    """The guards of the weights file, by name."""
    return (run.weights.get("guards") or {}) if run.weights else {}


def _by_fall(entry: tuple[str, Mapping[str, Any]]) -> float:
    return -float(entry[1]["fall"])


def _signed(one: Mapping[str, Any]) -> str:
    """A change of the score, not a fall, with its noise."""
    text = f"{-one['fall']:+.4f}".replace("-", "−")
    return text if one["stderr"] is None else f"{text} ± {one['stderr']:.4f}"
