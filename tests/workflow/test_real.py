"""Real training and answering at micro size: every form to λ, the whole chain to the report, killed and gone on."""

import json
import time
from pathlib import Path

import pytest

from tests.tiny import tiny_llava
from tests.workflow.runs import REPOSITORY, Run
from tests.workflow.test_kill import children
from tests.workflow.test_run import wait_for
from tests.workflow.world import write_experiment

pytestmark = pytest.mark.slow

SETTINGS = {
    "subsets": {"mini": 0.25},
    "global_batch_size": 4,
    "training": {"learning_rate": 0.01, "model_max_length": 128, "num_train_epochs": 3, "save_steps": 2},
    "generation": {"max_new_tokens": 8, "batch_size": 4},
    "launcher": {"threads": 1},
}


class RealRun(Run):
    """Without stand-ins, commands forked from the warm server as in any run on a CPU."""

    patience = 1200

    def __init__(self, experiment: Path, **environment: str) -> None:
        super().__init__(experiment, **environment)
        self.environment["PYTHONPATH"] = str(REPOSITORY)

    def command(self, *words: str) -> list[str]:
        return [word for word in super().command(*words) if word != "--cold"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("base") / "model")


def real(folder: Path, base: Path, tasks=None, **settings) -> RealRun:
    tasks = {name: {"metric": "gleu", **task} for name, task in (tasks or {"color": {}, "shape": {}}).items()}
    settings = {**SETTINGS, "weighting": {"on_degenerate": "drop", "bootstrap": 20}, **settings}
    path = write_experiment(folder, tasks, model={"path": str(base)}, **settings)
    for file in folder.glob("*_*-*.json"):  # answers in words that a few steps can learn
        records = json.loads(file.read_text())
        for record in records:
            turn = record["conversations"][1]
            turn["value"] = f"the {record['id'].split('-')[0]} here is {turn['value']}"
        file.write_text(json.dumps(records))
    return RealRun(path)


FORMS = {
    "standard": ({}, None),
    "precise": ({"weighting": {"difficulty": "precise", "on_degenerate": "drop"}}, None),
    "simple": ({"weighting": {"form": "simple", "on_degenerate": "drop"}}, None),
    "grouped": ({}, {"color": {"group": "looks"}, "hue": {"group": "looks"}, "shape": {}}),
    "groups found": ({"groups": 2}, {"color": {}, "hue": {}, "shape": {}}),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_reaches_weights(tmp_path, base, form):
    settings, tasks = FORMS[form]
    run = real(tmp_path, base, tasks, methods=[], **settings)
    run()
    weights = run.read("weights.json")["weights"]
    assert set(weights) == set(tasks or {"color", "shape"})
    if form.startswith("group"):
        groups = run.read("weights.json")["groups"]
        assert len(groups) == 2
        assert all(len({weights[task] for task in members}) == 1 for members in groups.values())
        assert sum(weights[members[0]] for members in groups.values()) == pytest.approx(2)
    else:
        assert sum(weights.values()) == pytest.approx(len(weights))
    assert (run.workdir / "report" / "index.html").stat().st_size > 10_000


def test_killed_twice_ends_as_if_left_alone(tmp_path, base):
    straight = real(tmp_path / "straight", base, methods=["VisATB"])
    straight()
    killed = real(tmp_path / "killed", base, methods=["VisATB"])
    for sign in ("models/mini/checkpoint-*", "models/VisATB/checkpoint-*"):
        process = killed.start()
        wait_for(lambda sign=sign: list(killed.workdir.glob(sign)), 240)
        for one in [process, *children(killed)]:
            one.kill()
        process.communicate()
        time.sleep(1)
    killed()
    assert killed.read("weights.json") == straight.read("weights.json")
    assert killed.read("results.json") == straight.read("results.json")
