"""The list of subsets: what was written is read, wherever the work folder lies by then, and damage is said."""

import json
import shutil

import pytest

from eval.errors import EvaluationError
from tests.workflow.world import write_experiment
from visatb.experiment.models import models
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets, write_subsets


@pytest.fixture
def written(tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, subsets={"mini": 0.25}))
    layout = Layout(tmp_path / "work")
    write_subsets(experiment, layout)
    return experiment, layout


def test_what_is_written_is_read(written):
    experiment, layout = written
    subsets = Subsets.read(layout)
    before = layout.subsets.read_bytes()
    subsets.write(layout)
    assert layout.subsets.read_bytes() == before
    plus = subsets.models["plus_mini:a"]
    assert (plus.samples, plus.counts, plus.sizes) == (20, {"a": 16, "b": 4}, {"a": "large", "b": "mini"})
    assert list(plus.files["a"]) == experiment.tasks["a"].train  # the user's own
    assert subsets.whole == 32


def test_files_follow_the_work_folder(written, tmp_path):
    experiment, layout = written
    moved = Layout(tmp_path / "elsewhere")
    shutil.move(layout.root, moved.root)
    mini = next(model for model in models(experiment) if model.name == "mini")
    subsets = Subsets.read(moved)
    assert subsets.question_files(mini, "val") == [str(moved.data / "val" / f"{task}_val-12.json") for task in "ab"]
    assert subsets.models["mini"].files["b"] == [str(moved.data / "b-mini_train-4.json")]


@pytest.mark.parametrize("part", ["questions", "models", "tasks"])
def test_damage_is_said_with_the_file(written, part):
    _, layout = written
    content = json.loads(layout.subsets.read_text())
    layout.subsets.write_text(json.dumps({**content, part: None} if part != "tasks" else {"tasks": {}}))
    with pytest.raises(EvaluationError, match=r"subsets\.json is damaged"):
        Subsets.read(layout)
