"""`groups: auto`: the tree and its cut on cases done by hand, and whole runs with stand-ins."""

import numpy as np
import pytest
import yaml

from eval.errors import EvaluationError
from tests.workflow.runs import Run
from tests.workflow.world import write_experiment
from visatb.experiment.groups import group_tasks
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.report.tree import read_tree
from visatb.workflow import engine
from visatb.workflow.engine import Outcome
from visatb.workflow.estimate import make_plan

SMALL = {"subsets": {"mini": 0.25}, "global_batch_size": 4, "weighting": {"bootstrap": 20}}


def at(*degrees: float) -> dict[str, list[float]]:
    """Tasks a, b, … as directions in the plane, off a common mean that must not matter."""
    turned = np.radians(degrees)
    vectors = np.stack([np.cos(turned), np.sin(turned)], 1)
    vectors -= vectors.mean(0)
    return {name: (vector + np.array([100, -50])).tolist() for name, vector in zip("abcdefgh", vectors, strict=False)}


def test_tree_by_hand():
    # Four unit vectors whose mean is zero: distances are 1 − cos of the angles between them.
    found = group_tasks(at(0, 60, 180, 240), "auto")
    near, far = 1 - np.cos(np.radians(60)), [1 - np.cos(np.radians(angle)) for angle in (180, 120, 120, 180)]
    assert np.array(found["tree"])[:, 2] == pytest.approx([near, near, np.mean(far)])
    assert found["groups"] == {"a+b": ["a", "b"], "c+d": ["c", "d"]}
    inside, outside = near, np.mean([far[0], far[1]])
    assert found["silhouettes"]["2"] == pytest.approx((outside - inside) / outside)
    assert found["distances"][0][2] == pytest.approx(2)


def test_silhouette_by_hand():
    found = group_tasks({"a": [2.0, 0.0], "b": [1.0, 1.0], "c": [-3.0, -1.0]}, 2)  # their mean is zero
    near, far, farther = 1 - 2**-0.5, 1 + 4 / 20**0.5, 1 + 3 / 10**0.5  # a to b, b to c, a to c
    assert found["groups"] == {"a+b": ["a", "b"], "c": ["c"]}
    # to the nearest other group less to the own one, over the larger; 0 for the one that is alone
    assert found["silhouettes"]["2"] == pytest.approx(((farther - near) / farther + (far - near) / far + 0) / 3)


def test_silhouettes_are_the_means_of_their_definition():
    """Rousseeuw's (b - a) / max(a, b) task by task, in plain Python; some tasks lie nearer to another group."""
    random = np.random.default_rng(0)
    tasks = list("abcdefgh")
    vectors = {task: random.normal(size=2).tolist() for task in tasks}
    lowest = 0.0
    for count in range(2, len(tasks)):
        found = group_tasks(vectors, count)
        values = []
        for task, row in zip(tasks, found["distances"], strict=True):
            apart = dict(zip(tasks, row, strict=True))
            own = next(members for members in found["groups"].values() if task in members)
            others = [members for members in found["groups"].values() if members != own]
            outside = min(np.mean([apart[other] for other in members]) for members in others)
            inside = np.mean([apart[other] for other in own if other != task] or [outside])  # 0 where it is alone
            values.append((outside - inside) / max(outside, inside))
        assert found["silhouettes"][str(count)] == pytest.approx(np.mean(values))
        lowest = min(lowest, *values)
    assert lowest < 0


@pytest.mark.parametrize(("asked", "count"), [(2, 2), (3, 3), (4, 4), ("auto", 2)])
def test_number_of_groups(asked, count):
    found = group_tasks(at(0, 10, 25, 180, 200), asked)
    assert len(found["groups"]) == count
    assert sorted(task for members in found["groups"].values() for task in members) == list("abcde")


def test_names():
    groups = group_tasks(at(0, 10, 25, 180), 2)["groups"]
    assert groups == {"a+2": ["a", "b", "c"], "d": ["d"]}
    vectors = at(0, 10, 180, 200)
    vectors = {"a+b" if name == "d" else name: vector for name, vector in vectors.items()}
    assert list(group_tasks(vectors, 2)["groups"]) == ["a+b_", "c+a+b"]


def test_tasks_that_look_the_same_are_refused():
    with pytest.raises(EvaluationError, match="cannot be told apart"):
        group_tasks({task: [1.0, 2.0] for task in "abc"}, "auto")
    with pytest.raises(EvaluationError, match="cannot be told apart"):
        group_tasks({"a": [1.0, float("nan")], "b": [0.0, 1.0], "c": [1.0, 0.0]}, "auto")


def test_drawn_tree():
    tree = read_tree(group_tasks(at(0, 60, 180, 240), 2))
    assert sorted(tree.leaves) == list("abcd")
    assert [join.inside for join in tree.joins] == [True, True, False]
    assert sorted(join.left[1] + join.right[1] for join in tree.joins[:2]) == [1, 5]  # rows 0 and 1, 2 and 3
    assert {tree.joins[2].left[1], tree.joins[2].right[1]} == {0.5, 2.5}
    assert tree.joins[1].height < tree.cut < tree.joins[2].height
    assert read_tree(group_tasks(at(0, 60, 180, 250), 3)).cut < tree.cut


TASKS = {"ant": {}, "bee": {}, "ape": {}, "bat": {}}


def test_settings_that_contradict_it(tmp_path):
    for words, settings in [
        ("groups of their own", {"tasks": {**TASKS, "bat": {"group": "g"}}, "groups": "auto"}),
        ("simple form", {"tasks": TASKS, "groups": "auto", "weighting": {"form": "simple"}}),
        ("2 to 3 groups", {"tasks": TASKS, "groups": 4}),
    ]:
        with pytest.raises(ExperimentError, match=words):
            load_experiment(write_experiment(tmp_path / words, **settings))


def test_plan_says_the_most_it_costs(tmp_path):
    plan = make_plan(load_experiment(write_experiment(tmp_path, TASKS, groups="auto", **SMALL)))
    assert sum(model.name.startswith("plus_mini") for model in plan.models) == 4
    assert any("groups: auto" in note for note in plan.notes)


def test_run_finds_groups_then_goes_on_with_them(tmp_path):
    run = Run(write_experiment(tmp_path, TASKS, groups="auto", methods=["VisATB"], **SMALL))
    assert run("--dry-run")[0].split() == ["check", "subsets", "mini"]
    run(REAL_REPORT="1")
    calls = run.calls()
    names = ["VisATB", "mini", "plus_mini-ant+ape", "plus_mini-bee+bat"]
    assert [call for call in calls if call.startswith("train")] == [f"train {name}" for name in sorted(names)]
    assert calls.count("represent mini") == 1
    weights = run.read("weights.json")
    assert weights["groups"] == {"ant+ape": ["ant", "ape"], "bee+bat": ["bee", "bat"]}
    assert "Groups of tasks" in (run.workdir / "report" / "index.html").read_text()
    assert (run.workdir / "report" / "figures" / "groups.pdf").exists()
    assert yaml.safe_load((run.workdir / "experiment.yaml").read_text())["tasks"]["bat"]["group"] == "bee+bat"

    run()
    assert run.calls() == []  # nothing is done again
    assert run("--dry-run")[0] == ""

    content = yaml.safe_load(run.experiment.read_text())
    run.experiment.write_text(yaml.safe_dump({**content, "groups": 3}, sort_keys=False))
    run()
    calls = run.calls()
    assert not {"train mini", "represent mini", "answer mini val"} & set(calls)
    assert len(run.read("grouping.json")["groups"]) == 3

    run.experiment.write_text(yaml.safe_dump({**content, "groups": None}, sort_keys=False))
    run()
    assert "train mini" not in run.calls()
    assert not (run.workdir / "grouping.json").exists()


def test_stopped_when_the_groups_are_known(tmp_path, monkeypatch):
    """A run that is stopped at the end of its first part does not begin the second."""
    calls = []

    def once(experiment, *_):
        calls.append(experiment.grouping)
        return Outcome(True, stopped=True)

    monkeypatch.setattr(engine, "run_once", once)
    file = write_experiment(tmp_path, TASKS, groups="auto", **SMALL)
    outcome = engine.run_experiment(file, tmp_path / "work")
    assert calls == ["auto"]
    assert (outcome.finished, outcome.stopped) == (False, True)
