"""The conformance test of trainers: it finds a wrong divisor, and the figures that we show hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from transformers_patch import conformance

KEPT = Path(__file__).parents[2] / "benchmarks/results/conformance.json"


def micro_batch_divisor(model: Any, dataset: Any, weights: Mapping[str, float] | None, options: dict[str, Any]) -> Any:
    """The published scheme: a weighted mean in each micro-batch."""
    return conformance.ours(model, dataset, weights, {**options, "loss_norm": "micro_batch"})


def test_a_wrong_divisor_is_found():
    name = f"{__name__}:micro_batch_divisor"
    found = conformance.measure([name, "trainer"], {"1 x 64": (64, 1), "16 x 4": (4, 16)}, torch.float64)
    for kind in ("equal", "given"):
        assert found[name][kind]["1 x 64"] < 1e-12
        assert found[name][kind]["16 x 4"] > 0.05
        assert max(found["trainer"][kind].values()) < 1e-12


def test_a_factory_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="none of ours, trainer"):
        conformance.find_factory("mine")
    with pytest.raises(ValueError, match="no_such_module:f"):
        conformance.find_factory("no_such_module:f")


def test_two_processes_of_trl_equal_one_batch():
    found = conformance.measure_on_two(["trl", "trl-stock"], "float64")
    assert max(found["trl"][kind][conformance.TWO] for kind in ("equal", "given")) < 1e-12
    assert found["trl-stock"]["given"] is None
    assert found["trl-stock"]["equal"][conformance.TWO] < 1e-6


def test_the_kept_figures_are_complete():
    figures = json.loads(KEPT.read_text())["figures"]
    assert set(figures) == set(conformance.FACTORIES)
    for name, kinds in figures.items():
        for errors in kinds.values():
            assert errors is None or set(errors) == {*conformance.SPLITS, conformance.TWO}
            assert errors is None or max(errors.values()) < (1e-6 if "stock" in name else 1e-12)


def test_the_guide_shows_the_kept_figures():
    text = (KEPT.parents[2] / "docs/trainers.md").read_text()
    for kinds in json.loads(KEPT.read_text())["figures"].values():
        for kind, errors in kinds.items():
            row = " | ".join(f"{errors[s]:.1e}" for s in [*conformance.SPLITS, conformance.TWO]) if errors else "cannot"
            assert f"| {kind} | {row}" in text
