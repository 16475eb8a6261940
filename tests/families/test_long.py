"""What takes minutes: two processes, and the experiment from data to λ to the report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.families.checks import EXACT, AllDouble, World, apart, train
from tests.families.micro import make_micro
from tests.families.table import FAMILIES
from tests.workflow.test_real import real

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
BOTH = pytest.mark.parametrize("name", ["qwen3_vl", "idefics3"])


def worker(name: str, folder: Path) -> None:
    """One of two ranks: two steps of four samples, two micro-batches of one sample a step on each."""
    world = World(name, folder)
    with AllDouble():
        parameters = train(world, folder / "ranks", per_device_train_batch_size=1, gradient_accumulation_steps=2)
    if os.environ["RANK"] == "0":
        save_file({key: value.contiguous().clone() for key, value in parameters.items()}, folder / "ranks.safetensors")


@BOTH
def test_two_processes_equal_one(name, tmp_path):
    """A rank's micro-batch is text alone in some steps, so that it runs the tower on a blank image."""
    world = World(name, tmp_path)
    assert len(world.samples) == 4
    with AllDouble():
        whole = train(world, tmp_path / "whole")
    done = subprocess.run(
        [*LAUNCH, __name__, name, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = load_file(tmp_path / "ranks.safetensors")
    assert apart({key: ranks[key] for key in whole if key in ranks}, {key: whole[key] for key in ranks}) < EXACT
    assert len(ranks) == len(whole)


@BOTH
def test_experiment_from_data_to_the_report(name, tmp_path):
    """`visatb run` with a micro model that has no file of its own."""
    base = make_micro(FAMILIES[name], tmp_path / "model")
    run = real(tmp_path / "run", base, methods=["VisATB"])
    run()
    weights = run.read("weights.json")["weights"]
    assert set(weights) == {"color", "shape"}
    assert sum(weights.values()) == pytest.approx(2)
    assert len(set(weights.values())) == 2
    assert (run.workdir / "report" / "index.html").stat().st_size > 10_000


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
