"""`visatb run` scores answers as the evaluators' own commands do."""

import json
from types import SimpleNamespace

from eval.cli import evaluate
from visatb.experiment.read import load_experiment
from visatb.workdir.layout import Layout
from visatb.workflow.steps import score_task

from .world import write_experiment, write_task


def test_a_run_and_an_evaluator_count_the_same_malformed_answers(tmp_path):
    """An answer without a box is an answer to `em`, and malformed to `iou`: whichever of them comes first."""
    tasks = {name: write_task(tmp_path, name, {"train": 4, "val": 2}) for name in ("boxes", "other")}
    for metrics in (["em", "iou"], ["iou", "em"]):
        tasks["boxes"]["metric"] = metrics
        experiment = load_experiment(write_experiment(tmp_path, tasks, methods=[]))
        layout = Layout(tmp_path / "work")
        questions = tmp_path / "boxes_val-2.json"
        answers = layout.answers("val", "mini", questions)
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.write_text(json.dumps([record("a", "cat"), record("b", "[0.1, 0.1, 0.5, 0.5]")]))
        score_task(SimpleNamespace(experiment=experiment, layout=layout), "mini", "val", "boxes", questions)
        written = json.loads(layout.score("val", "boxes", "mini").read_text())
        wanted = evaluate(answers, metrics, task="boxes", model="mini", split="val")
        assert written == wanted.score_file()
        assert written["num_malformed"] == 1
        assert json.loads(layout.per_sample("val", "boxes", "mini").read_text()) == wanted.per_sample_file()


def record(name, said):
    truth = {"from": "gpt", "value": "[0.1, 0.1, 0.5, 0.5]", "generative_value": said}
    return {"id": name, "conversations": [{"from": "human", "value": "where?"}, truth]}
