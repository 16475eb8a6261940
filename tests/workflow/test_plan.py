"""What `visatb plan` says: of the shipped examples, and where files tell or do not tell their size."""

import json
from pathlib import Path

import pytest

from tests.workflow.world import write_experiment
from visatb.commands.plan import main
from visatb.experiment.read import load_experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workflow.estimate import make_plan

EXAMPLES = Path(__file__).parents[2] / "examples"


def costs(plan):
    return {form.name: (form.trainings, round(form.counted, 2), round(form.by_formula, 2)) for form in plan.forms}


def test_academic_benchmark():
    plan = make_plan(load_experiment(EXAMPLES / "academic.yaml"))
    models = {model.name: model for model in plan.models}
    assert len(models) == 8 + 6 + 7
    # Table 9's sizes: 474k samples, 3,700+ steps (Appendix B); 1/32 of them in more than 100 steps.
    assert models["EW"].samples == 474_000
    assert models["EW"].steps == 3704
    assert models["mini"].steps == 116
    assert models["plus_mini:GQA"].samples == models["mini"].samples + 72_000 - 2_250
    assert not {"plus_mini:ShareGPT", "STL:ShareGPT"} & set(models)
    assert plan.form == "standard"
    assert costs(plan)["standard"] == (8, 1.13, 1.22)  # the estimate counts ShareGPT's whole data as a proxy's
    assert [text.split(":")[0] for text in plan.advice] == ["mini subsets below 1,000 samples (Appendix B)"]
    assert "ChartQA (563)" in plan.advice[0]
    assert models["EW"].kept_bytes == pytest.approx(14.12e9)
    assert models["mini"].kept_bytes == 0
    assert models["EW"].answer_seconds > 60


def test_m3it_benchmark_costs_what_the_paper_says():
    plan = make_plan(load_experiment(EXAMPLES / "m3it.yaml"))
    assert costs(plan)["standard"] == (6, 0.41, 0.41)  # 0.25 + 5 × 0.03 in the paper's rounding
    assert costs(plan)["precise"] == (16, 0.69, 0.69)
    assert {model.name for model in plan.models if model.stage == "proxies"} == {"mini"} | {
        f"plus_mini:{group}" for group in ("captioning", "classification", "vqa", "reasoning", "generation")
    }
    assert load_experiment(EXAMPLES / "m3it.yaml").weighting.temperature == 1.0


def test_chat_benchmark_is_of_the_simple_form():
    plan = make_plan(load_experiment(EXAMPLES / "chat.yaml"))
    assert plan.form == "simple"
    assert costs(plan)["simple"] == (6, 1.03, 1.03)
    models = {model.name: model for model in plan.models}
    assert models["EW"].steps == 3705  # three epochs of 158k
    assert models["base"].samples == models["base"].steps == 0
    assert models["single:detail"].questions == 90 + 15  # all of validation, and STL's test: the same run
    assert "STL:detail" not in models


def test_qwen_benchmark():
    experiment = load_experiment(EXAMPLES / "qwen2vl.yaml")
    assert (experiment.model.family, experiment.weighting.temperature) == ("qwen2_vl", 1.0)
    assert len(make_plan(experiment).models) == 8 + 2 + 7


@pytest.mark.parametrize("name", ["academic", "m3it", "chat", "qwen2vl"])
def test_command_on_the_examples(name, capsys):
    assert main([str(EXAMPLES / f"{name}.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == name
    assert main([str(EXAMPLES / f"{name}.yaml")]) == 0
    assert "R_large + N·R_mini" in capsys.readouterr().out


def test_counts_files_that_are_there(tmp_path):
    path = write_experiment(
        tmp_path, {"a": {}, "b": {}}, subsets={"mini": 0.25}, global_batch_size=8, max_val_samples=3
    )
    models = {model.name: model for model in make_plan(load_experiment(path)).models}
    assert (models["mini"].samples, models["mini"].steps, models["mini"].questions) == (8, 1, 6)
    assert (models["plus_mini:a"].samples, models["plus_mini:a"].steps) == (20, 3)
    assert (models["EW"].samples, models["EW"].steps, models["EW"].questions) == (32, 4, 20)


def test_equal_steps_for_stl(tmp_path):
    settings = {"methods": ["STL"], "stl_steps": "equal", "global_batch_size": 8}
    models = make_plan(load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, **settings))).models
    assert [(model.name, model.steps) for model in models if model.stage == "stl"] == [("STL:a", 4), ("STL:b", 4)]


def test_file_of_unknown_size(tmp_path, capsys):
    path = write_experiment(
        tmp_path, {"a": {}, "b": {"train": "lost.json", "val": "x_val-2.json", "test": "x_test-2k.json"}}
    )
    with pytest.raises(ExperimentError, match=r"lost\.json does not exist"):
        make_plan(load_experiment(path))
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_advice_about_weights(tmp_path):
    (tmp_path / "weights.json").write_text(json.dumps({"tasks": ["a", "b"], "weights": {"a": 0.4, "b": 1.6}}))
    plan = make_plan(load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}})), tmp_path)
    assert any("a 0.400" in text and "1.6" not in text for text in plan.advice)
    (tmp_path / "weights.json").write_text(
        json.dumps({"tasks": ["a"], "weights": {"a": 0.4}, "warnings": ["a: no gain"]})
    )
    plan = make_plan(load_experiment(tmp_path / "experiment.yaml"), tmp_path)
    assert [text for text in plan.advice if "λ" in text or "weights" in text] == ["λ: a: no gain"]


def test_sampling_is_said(tmp_path):
    settings = {"weighting": {"apply": "sampling"}, "subsets": {"mini": 0.5}}
    assert "sampling ratios" in "".join(
        make_plan(load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, **settings))).notes
    )


def test_repeats_of_a_model_are_one_row(tmp_path, capsys):
    """Sixteen trainings that cost the same are not sixteen rows; the JSON has them all."""
    settings = {"subsets": {"mini": 0.5}, "repeats": {"proxies": {"mini": 16}, "finals": 3}}
    path = str(write_experiment(tmp_path, {"a": {}, "b": {}}, **settings))
    assert main([path]) == 0
    shown = capsys.readouterr().out
    assert "mini (each of 16)" in shown
    assert "EW (each of 3)" in shown
    assert "plus_mini:a " in shown
    assert "#" not in shown
    assert main([path, "--json"]) == 0
    assert sum(model["name"].startswith("mini") for model in json.loads(capsys.readouterr().out)["models"]) == 16
