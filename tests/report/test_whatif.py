"""The what-if panel's arithmetic (weights.js) against weighting_visatb.py, in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visatb.report
from weighting_visatb import auto_temperature, visatb_weights, weight_components

SCRIPT = Path(visatb.report.__file__).parent / "assets" / "weights.js"
RUN = """
const w = require(process.argv[1]);
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map((c) => ({
  parts: w.weightComponents(c.out, c.in, c.hard, c.t),
  weights: w.visatbWeights(c.out, c.in, c.hard, c.t, c.alpha),
  auto: w.autoTemperature(c.out, c.in, c.hard, c.alpha),
  moved: w.moveAlpha(c.alpha, c.which, c.to),
  shift: w.guardShift([0.1, -0.2], [1.5, 0.5]),
}))));
"""


def cases() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    found = []
    for number in range(60):
        n = int(rng.integers(2, 12))
        scores = rng.normal(scale=rng.choice([0.05, 0.3, 3]), size=(3, n))
        if number % 3 == 0:
            scores[rng.random((3, n)) < 0.25] = np.nan
        if number % 10 == 9:
            scores[1] = np.nan  # nothing known of one component
        alpha = rng.dirichlet([1, 1, 1]) if number % 4 else np.array([0.0, 0.0, 1.0])
        found.append(
            {
                "out": scores[0],
                "in": scores[1],
                "hard": scores[2],
                "t": float(10 ** rng.uniform(-1, 1)),
                "alpha": alpha,
                "which": int(rng.integers(3)),
                "to": float(rng.random()),
            }
        )
    return found


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if np.isnan(v) else float(v) for v in value]
    return value


@pytest.fixture(scope="module")
def answers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on the PATH; the browser test compares some weights, too")
    asked = cases()
    text = json.dumps([{key: plain(value) for key, value in case.items()} for case in asked])
    done = subprocess.run([node, "-e", RUN, str(SCRIPT)], input=text, capture_output=True, text=True, check=True)
    return list(zip(asked, json.loads(done.stdout), strict=True))


def test_weights_are_the_same(answers: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for case, answer in answers:
        vectors = case["out"], case["in"], case["hard"]
        np.testing.assert_allclose(answer["parts"], weight_components(*vectors, case["t"]), rtol=1e-12)
        expected = visatb_weights(*vectors, case["t"], case["alpha"])
        np.testing.assert_allclose(answer["weights"], expected, rtol=1e-12)


def test_automatic_temperature_is_the_same(answers: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    found = set()
    for case, answer in answers:
        expected = auto_temperature(case["out"], case["in"], case["hard"], case["alpha"])
        assert answer["auto"] == pytest.approx(expected, rel=1e-9)
        found.add(expected > 0.1)
    assert found == {True, False}  # both ends of the search were met


def test_a_guards_shift_is_zero_at_equal_weights_and_linear(
    answers: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    """By hand: −(0.5 · 0.1 + −0.5 · −0.2)."""
    assert answers[0][1]["shift"] == pytest.approx(-0.15)


def test_moving_one_share_keeps_the_sum_and_the_ratio(answers: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for case, answer in answers:
        moved, which = answer["moved"], case["which"]
        assert sum(moved) == pytest.approx(1)
        assert min(moved) >= 0
        assert moved[which] == pytest.approx(case["to"])
        a, b = (k for k in range(3) if k != which)
        if case["alpha"][a] + case["alpha"][b] > 1e-9:
            assert moved[a] * case["alpha"][b] == pytest.approx(moved[b] * case["alpha"][a], abs=1e-12)
