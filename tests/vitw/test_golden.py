"""Golden curves: twenty steps of every method on the workbench. `python -m tests.vitw.test_golden` writes them anew."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.vitw.workbench import METHODS, run

FILE = Path(__file__).with_name("golden.json")


def curve(method: str) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        engine = run(folder, method, max_steps=20, per_device_train_batch_size=8)
    return [entry["loss"] for entry in engine.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
def test_loss_curve_is_unchanged(method):
    assert curve(method) == pytest.approx(json.loads(FILE.read_text())[method], rel=1e-6)


if __name__ == "__main__":
    FILE.write_text(json.dumps({method: curve(method) for method in METHODS}, indent=1) + "\n")
    sys.exit(0)
