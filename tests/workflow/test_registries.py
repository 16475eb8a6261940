"""One class and one registry line make a weighting method, and a metric, that an experiment can name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from eval.metrics import METRICS, ExactMatch, find_measure
from eval.scores import Measure, Scored
from transformers_patch.arguments import VitwTrainingArguments
from transformers_patch.weighter import WEIGHTERS, EqualWeighting
from visatb.experiment.models import models
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets, TrainingData
from visatb.workflow.stage_commands import Launch, train_arguments
from visatb.workflow.steps import score_task

from .world import write_experiment


class Growing(EqualWeighting):
    """λ of task k is k."""

    name = "Growing"

    def task_weights(self, step, token_counts):
        return np.arange(1.0, self.num_tasks + 1)


class Length(ExactMatch):
    """The share of answers that are as long as their truth."""

    measures = (Measure("length", "as long as the truth", "length", percent=True),)

    def score(self, samples):
        values = [float(len(sample.prediction) == len(sample.references[0])) for sample in samples]
        return Scored([self.measures[0].column(values)], [False] * len(samples))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(WEIGHTERS, "Growing", Growing)
    monkeypatch.setitem(METRICS, "length", f"{__name__}:Length")


def test_a_new_method_is_one_class_and_one_line(tmp_path, registered):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, methods=["EW", "Growing"]))
    [job] = [model for model in models(experiment) if model.method == "Growing"]
    data = TrainingData({task: [str(tmp_path / f"{task}.json")] for task in "ab"})
    words = train_arguments(experiment, Layout(tmp_path), job, Subsets(models={job.name: data}), Launch())
    assert words[words.index("--weight_method") + 1] == "Growing"
    arguments = VitwTrainingArguments(output_dir=str(tmp_path), weight_method="Growing", report_to=[])
    weighter = arguments.make_weighter(2)
    assert weighter.task_weights(0, np.array([3, 4])).tolist() == [1.0, 2.0]


def test_a_method_that_nobody_registered_is_named_with_the_known_ones(tmp_path):
    path = write_experiment(tmp_path, {"a": {}, "b": {}}, methods=["EW", "Growing"])
    with pytest.raises(ExperimentError, match=r"'Growing' is none of the methods EW, TLA, RLW, DWA, IGB, VisATB, STL"):
        load_experiment(path)


def test_a_new_metric_is_one_class_and_one_line(tmp_path, registered):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {"metric": "length"}, "b": {}}))
    layout = Layout(tmp_path / "work")
    answers = layout.answers("test", "EW", tmp_path / "a_test-10.json")
    answers.parent.mkdir(parents=True)
    records = json.loads((tmp_path / "a_test-10.json").read_text())
    for record in records:
        record["conversations"][1]["generative_value"] = record["conversations"][1]["value"][::-1]
    answers.write_text(json.dumps(records))
    context = SimpleNamespace(experiment=experiment, layout=layout)
    score_task(context, "EW", "test", "a", tmp_path / "a_test-10.json")
    [score] = json.loads(layout.score("test", "a", "EW").read_text())["scores"]
    assert (score["metric"], score["value"]) == ("length", 1.0)
    assert find_measure("length").percent
    assert find_measure("length").short == "length"
    assert find_measure("from elsewhere").short == "from elsewhere"
