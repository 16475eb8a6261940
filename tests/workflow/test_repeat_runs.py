"""Whole runs with repeats, with stand-ins for training and answering."""

import pytest

from tests.workflow.runs import Run
from tests.workflow.test_kill import children, kill, outcome
from tests.workflow.test_run import change, experiment, wait_for

REPEATS = {"repeats": {"proxies": {"mini": 2}, "finals": 2}}
FIGURES = ("matrix.json", "weights.json", "results.json")


def trained(run: Run) -> list[str]:
    return [call.removeprefix("train ") for call in run.calls() if call.startswith("train ")]


@pytest.mark.slow
def test_repeats_are_added_and_taken_away(tmp_path):
    run = experiment(tmp_path)
    run()
    assert trained(run) == ["EW", "VisATB", "mini", "plus_mini-a", "plus_mini-b"]
    once = {name: run.read(name) for name in FIGURES}

    change(run, **REPEATS)
    assert run("--dry-run")[0].split() == [
        "subsets", "mini#2", "weights", "VisATB", "EW#2", "VisATB#2", "results", "report",
    ]  # fmt: skip
    run(REAL_REPORT="1")
    assert trained(run) == ["EW@2", "VisATB", "VisATB@2", "mini@2"]
    twice = {name: run.read(name) for name in FIGURES}
    matrix, before = twice["matrix.json"], once["matrix.json"]
    assert matrix["mini"]["a"][0] == before["mini"]["a"]
    assert matrix["mini"]["a"][1] != matrix["mini"]["a"][0]
    assert matrix["plus_mini"] == before["plus_mini"]
    assert twice["weights.json"]["weights"] != once["weights.json"]["weights"]
    for model in ("VisATB", "VisATB@2"):
        assert run.read(f"models/{model}/run_card.json")["weights"] == twice["weights.json"]["weights"]
    runs = twice["results.json"]["runs"]["EW"]["a"]
    assert runs[0] == once["results.json"]["methods"]["EW"]["a"]
    assert runs[1] != runs[0]
    assert twice["results.json"]["methods"]["EW"]["a"] == [(runs[0][0] + runs[1][0]) / 2]
    assert {"mini", "mini#2", "EW#2", "VisATB#2"} < set(run.read("cost.json"))
    page = (run.workdir / "report" / "index.html").read_text()
    assert "mini#2" in page

    change(run, repeats={})
    run(REAL_REPORT="1")
    assert trained(run) == ["VisATB"]  # λ is another again
    assert {name: run.read(name) for name in FIGURES} == once
    for kept in ("models/mini@2/run_card.json", "models/EW@2/model.safetensors", "answers/val/mini@2"):
        assert (run.workdir / kept).exists()
    assert "@2" not in (run.workdir / "report" / "index.html").read_text()

    change(run, **REPEATS)
    run()
    # mini#2 and EW#2 are as they were left, and VisATB#2 still is what these weights make.
    assert run.calls() == ["answer VisATB test", "train VisATB"]
    assert {name: run.read(name) for name in FIGURES} == twice


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = experiment(tmp_path_factory.mktemp("undisturbed"), **REPEATS)
    run()
    return outcome(run), run.read("results.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("models/mini@2/progress", "all"),
        ("models/mini@2/progress", "job"),
        ("answers/val/mini@2/progress", "run"),
        ("models/VisATB@2/progress", "all"),
    ],
)
def test_killed_run_with_repeats_ends_with_the_same_figures(tmp_path, undisturbed, stage, victim):
    run = experiment(tmp_path, **REPEATS)
    process = run.start(STAND_IN_SECONDS="1")
    wait_for(lambda: (run.workdir / stage).exists() or process.poll() is not None)
    kill(run, process, victim)
    process.communicate(timeout=120)
    run()
    assert (outcome(run), run.read("results.json")) == undisturbed
    assert not children(run)
    calls = run.calls()
    assert len([call for call in calls if call.startswith("train") and "resumed" not in call]) == 8
