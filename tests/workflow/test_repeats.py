"""Models that are trained more than once: names, seeds, subsets, keys, cost, and what is left alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from eval.answers import safe_name
from eval.errors import EvaluationError
from eval.repeats import repeat_name, split_repeat
from tests.workflow.world import write_experiment
from visatb.experiment.models import models, proxies, stl_model
from visatb.experiment.read import load_experiment
from visatb.experiment.schema import Experiment
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.results import write_results
from visatb.workdir.state import noted_keys
from visatb.workdir.subsets import Subsets, write_subsets
from visatb.workflow.engine import Options, prepare
from visatb.workflow.estimate import make_plan
from visatb.workflow.jobs import jobs
from visatb.workflow.keys import compute
from visatb.workflow.stage_commands import Launch, train_arguments

PRECISE = {"weighting": {"difficulty": "precise"}}


def of(folder: Path, tasks: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    return load_experiment(write_experiment(folder, tasks or {"a": {}, "b": {}}, **settings))


def names(experiment: Experiment) -> list[str]:
    return [model.name for model in models(experiment)]


def keys(experiment: Experiment) -> dict[str, str]:
    """Job → all of its keys."""
    layout = Layout(experiment.source.parent / "work")
    return {job: json.dumps(noted_keys(steps)) for job, steps in compute(experiment, layout).items()}


# ----------------------------------------------------------------------------------------------------- names, graph


def test_names_of_repeats():
    assert [repeat_name("plus_mini:a", repeat) for repeat in (1, 2, 30)] == [
        "plus_mini:a", "plus_mini:a#2", "plus_mini:a#30",
    ]  # fmt: skip
    assert split_repeat("plus_mini:a#30") == ("plus_mini:a", 30)
    assert split_repeat("mini") == ("mini", 1)
    assert split_repeat("mini#1") == ("mini#1", 1)
    assert split_repeat("mini#02") == ("mini#02", 1)
    # On disk no other model has a repeat's name, whatever tasks are called.
    assert safe_name("plus_mini:a#2") == "plus_mini-a@2"
    assert len({safe_name(f"STL:{task}") for task in ("a#2", "a-2", "a.2", "a+2", "a_2")}) == 5
    assert safe_name("STL:a@2") == "STL-a-2"


def test_every_model_is_trained_as_often_as_asked(tmp_path):
    settings = {"methods": ["EW", "VisATB", "STL"], "repeats": {"proxies": {"mini": 3, "plus_mini": 2}, "finals": 2}}
    assert names(of(tmp_path, **settings)) == [
        "mini", "plus_mini:a", "plus_mini:b", "mini#2", "plus_mini:a#2", "plus_mini:b#2", "mini#3",
        "EW", "VisATB", "STL:a", "STL:b", "EW#2", "VisATB#2", "STL:a#2", "STL:b#2",
    ]  # fmt: skip


def test_the_base_model_is_not_trained_and_so_not_repeated(tmp_path):
    found = names(of(tmp_path, weighting={"form": "simple"}, methods=[], repeats={"proxies": 2}))
    assert found == ["base"] + [
        repeat_name(f"{kind}:{task}", repeat)
        for repeat in (1, 2) for task in "ab" for kind in ("single", "single_mini")
    ]  # fmt: skip


def test_only_the_first_mini_model_finds_groups(tmp_path):
    open_groups = of(tmp_path, {"a": {}, "b": {}, "c": {}}, groups="auto", repeats={"proxies": 2})
    assert names(open_groups) == ["mini"]
    found = open_groups.with_groups({"a": ["a", "b"]})
    assert names(found)[:6] == ["mini", "plus_mini:a", "plus_mini:c", "mini#2", "plus_mini:a#2", "plus_mini:c#2"]


@pytest.mark.parametrize(
    ("repeats", "expected"),
    [
        ({"proxies": 2, "finals": 2}, ["single:a", "single:a#2"]),
        ({"proxies": 3, "finals": 1}, ["single:a"]),
        ({"proxies": {"single": 2}, "finals": 3}, ["single:a", "single:a#2", "STL:a#3"]),
        ({"proxies": {"single_mini": 3}, "finals": 2}, ["single:a", "STL:a#2"]),
    ],
)
def test_stl_reuses_the_repeats_that_are_the_same_runs(tmp_path, repeats, expected):
    experiment = of(tmp_path, methods=["STL"], repeats=repeats, **PRECISE)
    times = range(1, experiment.repeats.finals + 1)
    assert [stl_model(experiment, "a", repeat) for repeat in times] == expected
    tested = [model.name for model in models(experiment) if model.asked["test"] == ("a",)]
    assert tested == expected
    for repeat, name in zip(times, expected, strict=True):
        [model] = [model for model in models(experiment) if model.name == name]
        assert model.repeat == repeat  # whichever of the two it is, its seed is the same


def test_every_visatb_run_waits_for_the_one_lambda_of_all_proxies(tmp_path):
    experiment = of(tmp_path, repeats={"proxies": 2, "finals": 2})
    after = {job.name: set(job.after) for job in jobs(experiment)}
    assert after["weights"] == {model.name for model in proxies(experiment)}
    assert "mini#2" in after["weights"]
    assert "weights" in after["VisATB#2"]
    assert "weights" not in after["EW#2"]
    assert {"EW", "EW#2", "VisATB", "VisATB#2"} <= after["results"]


def test_jobs_of_repeats_have_names_that_engines_and_file_systems_take(tmp_path):
    """The engine's rule names are SLURM's job names, too."""
    layout = Layout(tmp_path / "work")
    prepare(of(tmp_path, repeats={"proxies": 2, "finals": 2}), layout, Options(profile="somewhere"))
    listed = json.loads(layout.jobs.read_text())["jobs"]
    rules = [job["rule"] for job in listed]
    assert len(set(rules)) == len(rules)
    assert all(rule.isidentifier() for rule in rules)
    done = {job["name"]: job["done"] for job in listed}
    assert done["plus_mini:a#2"] == "../done/plus_mini-a@2.json"
    assert done["VisATB#2"] == "../done/VisATB@2.json"


@pytest.mark.parametrize(
    ("tasks", "settings", "words"),
    [
        ({"a": {}, "b#2": {}}, {}, ["tasks.b#2", "second training"]),
        ({"a": {"group": "g#3"}, "b": {"group": "g#3"}, "c": {}}, {}, ["g#3", "second training"]),
        (None, {"repeats": {"proxies": {"single": 2}}}, ["repeats.proxies.single", "mini, plus_mini"]),
        (None, {"repeats": {"proxies": {"base": 2}}}, ["repeats.proxies"]),
        (None, {"repeats": {"finals": 0}}, ["repeats.finals", "greater than or equal to 1"]),
        (None, {"repeats": {"final": 2}}, ["did you mean finals"]),
    ],
)
def test_repeats_that_cannot_be_are_refused(tmp_path, tasks, settings, words):
    with pytest.raises(ExperimentError) as caught:
        of(tmp_path, tasks, **settings)
    for word in words:
        assert word in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- keys

# Keys of experiments without repeats, as they were before repeats came: nothing of theirs is trained again.
BEFORE = {
    "standard": ("767d5ba268d2b31b588d", {}),
    "precise": ("e6c7cd2bf651b15325e7", PRECISE),
    "simple": ("c5f0ff11ce50832f656a", {"weighting": {"form": "simple"}}),
    "grouped": (
        "7e5c7dac002540614654",
        {
            "methods": ["EW", "TLA", "STL"],
            "stl_steps": "equal",
            "subsets": {"large": 0.75, "mini": 0.25, "seed": 3},
        },
    ),
}


@pytest.mark.parametrize("form", BEFORE)
@pytest.mark.parametrize("given", [{}, {"repeats": {"proxies": 1, "finals": 1, "redraw": False}}])
def test_without_repeats_every_key_is_what_it_was(tmp_path, form, given):
    expected, settings = BEFORE[form]
    tasks = {"a": {}, "b": {}, "chat": {"weight": 1.0}}
    grouped = {"a": {"group": "g"}, "b": {"group": "g"}, "c": {}}
    common = {"subsets": {"large": 1.0, "mini": 0.5}, "methods": ["EW", "VisATB", "STL"]}
    common |= {"max_val_samples": 6, "image_folder": None}
    experiment = of(tmp_path, grouped if form == "grouped" else tasks, **{**common, **settings, **given})
    found = {job: noted_keys(steps) for job, steps in compute(experiment, Layout(tmp_path / "work")).items()}
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:20] == expected


@pytest.mark.parametrize(
    ("more", "new", "changed"),
    [
        ({"proxies": {"mini": 2}}, {"mini#2"}, {"subsets", "weights", "VisATB", "results", "report"}),
        ({"finals": 2}, {"EW#2", "VisATB#2", "STL:a#2", "STL:b#2"}, {"subsets", "results", "report"}),
    ],
)
def test_more_repeats_leave_the_others(tmp_path, more, new, changed):
    settings = {"methods": ["EW", "VisATB", "STL"]}
    before = keys(of(tmp_path, **settings))
    after = keys(of(tmp_path, **settings, repeats=more))
    assert after.keys() - before.keys() == new
    assert {job for job in before if before[job] != after[job]} == changed


def test_every_repeat_has_its_own_key(tmp_path):
    """Seed and, for what is trained on subsets, their draw tell repeats apart; the draw does not where it is kept."""
    settings = {"subsets": {"large": 0.75, "mini": 0.25}, "methods": ["EW"]}
    found = keys(of(tmp_path, **settings, repeats={"proxies": 3, "finals": 3}))
    assert len({found[repeat_name(model, repeat)] for model in ("mini", "EW") for repeat in (1, 2, 3)}) == 6
    kept = keys(of(tmp_path, **settings, repeats={"proxies": 3, "finals": 3, "redraw": False}))
    assert {job for job in kept if kept[job] != found[job]} == {
        "subsets", "weights", "results", "report",
        *(repeat_name(model, repeat) for model in ("mini", "plus_mini:a", "plus_mini:b") for repeat in (2, 3)),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- seeds and subsets


def seed_of(experiment: Experiment, layout: Layout, model: str) -> int:
    [job] = [job for job in models(experiment) if job.name == model]
    words = train_arguments(experiment, layout, job, Subsets.read(layout), Launch())
    return int(words[words.index("--seed") + 1])


@pytest.mark.parametrize("redraw", [True, False])
def test_repeats_have_seeds_and_subsets_of_their_own(tmp_path, redraw):
    experiment = of(
        tmp_path,
        seed=7,
        subsets={"large": 0.75, "mini": 0.25, "seed": 3},
        repeats={"proxies": 3, "finals": 2, "redraw": redraw},
    )
    layout = Layout(tmp_path / "work")
    write_subsets(experiment, layout)
    expected = {"mini": 7, "mini#2": 8, "plus_mini:b#3": 9, "EW": 7, "EW#2": 8, "VisATB#2": 8}
    assert {model: seed_of(experiment, layout, model) for model in expected} == expected

    listing = Subsets.read(layout).models
    files = [listing[repeat_name("mini", repeat)].files["a"] for repeat in (1, 2, 3)]
    records = [tuple(record["id"] for record in json.loads(Path(file).read_text())) for [file] in files]
    assert [listing[repeat_name("mini", repeat)].seed for repeat in (1, 2, 3)] == ([3, 4, 5] if redraw else [3] * 3)
    assert len(set(records)) == (3 if redraw else 1)
    assert all(len(ids) == 4 for ids in records)
    [large] = listing["plus_mini:a#2"].files["a"]
    assert set(records[1]) <= {record["id"] for record in json.loads(Path(large).read_text())}
    assert listing["plus_mini:b#2"].files["a"] == files[1]

    # The second draw is that of an experiment of the next seed, the first one that of an experiment without repeats.
    for seed, drawn in zip((3, 4), records, strict=False):
        alone = of(tmp_path, subsets={"large": 0.75, "mini": 0.25, "seed": seed})
        other = Layout(tmp_path / f"alone-{seed}")
        write_subsets(alone, other)
        [file] = Subsets.read(other).models["mini"].files["a"]
        same = tuple(record["id"] for record in json.loads(Path(file).read_text())) == drawn
        assert same == (redraw or seed == 3)


def test_the_last_seed_is_followed_by_the_first(tmp_path):
    experiment = of(tmp_path, seed=2**32 - 1, subsets={"seed": 2**32 - 1}, repeats={"finals": 2})
    assert experiment.training_seed(1) == 2**32 - 1
    assert experiment.training_seed(2) == experiment.subsets_seed(2) == 0


# ------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(
    ("repeats", "form", "trainings", "formula", "by_formula"),
    [
        ({}, "standard", 3, "R_large + N·R_mini", 1.5),
        ({"proxies": {"mini": 4}}, "standard", 6, "R_large + (N + 3)·R_mini", 2.25),
        ({"proxies": 3}, "standard", 9, "3·R_large + 3·N·R_mini", 4.5),
        ({"proxies": {"plus_mini": 2}}, "standard", 5, "2·R_large + (2·N − 1)·R_mini", 2.75),
        ({"proxies": 2}, "precise", 14, "2·R_large + 2·N·R_mini + (2·R_large + 2·R_mini)", 5.5),
        ({"proxies": 2}, "simple", 8, "2·R_large + 2·R_mini", 2.5),
    ],
)
def test_cost_of_finding_weights_counts_repeats(tmp_path, repeats, form, trainings, formula, by_formula):
    """Two tasks of the same size at the rates 1 and 1/4: counted in samples it is what the formula says."""
    plan = make_plan(of(tmp_path, subsets={"mini": 0.25}, repeats={"finals": 2, **repeats}))
    [cost] = [cost for cost in plan.forms if cost.name == form]
    assert (cost.trainings, cost.formula, cost.by_formula) == (trainings, formula, by_formula)
    assert cost.counted == pytest.approx(by_formula)
    planned = {model.name: model for model in plan.models}
    assert planned["EW#2"].samples == planned["EW"].samples == 32
    assert any("repeats: " in note and "42 to " in note for note in plan.notes)


def test_plan_without_repeats_says_nothing_of_them(tmp_path):
    assert not any("repeats" in note for note in make_plan(of(tmp_path)).notes)


# ---------------------------------------------------------------------------------------------------------- results


def write_score(layout: Layout, task: str, model: str, *values: float) -> None:
    scores = [
        {"metric": name, "value": value, "stderr": None, "higher_is_better": True}
        for name, value in zip(("em", "gleu"), values, strict=False)
    ]
    content = {"task": task, "model": model, "split": "test", "num_samples": 10, "num_malformed": 0, "scores": scores}
    path = layout.score("test", task, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def results_of(experiment: Experiment, layout: Layout) -> dict[str, Any]:
    write_results(experiment, layout)
    return json.loads(layout.results.read_text())


def test_results_are_means_and_every_run_is_told(tmp_path):
    """Two tasks (one of two metrics), two runs of each method; by hand."""
    experiment = of(tmp_path, {"a": {"metric": ["em", "gleu"]}, "b": {}}, repeats={"finals": 2})
    layout = Layout(tmp_path / "work")
    figures = {
        "a": {"EW": (0.5, 0.2), "EW#2": (0.4, 0.4), "VisATB": (0.6, 0.2), "VisATB#2": (0.4, 0.5)},
        "b": {"EW": (0.5,), "EW#2": (0.8,), "VisATB": (0.4,), "VisATB#2": (0.9,)},
    }
    for task, rows in figures.items():
        for model, values in rows.items():
            write_score(layout, task, model, *values)
    found = results_of(experiment, layout)
    assert found["repeats"] == {"EW": 2, "VisATB": 2}
    assert found["runs"]["VisATB"] == {"a": [[0.6, 0.2], [0.4, 0.5]], "b": [[0.4], [0.9]]}
    assert found["methods"]["VisATB"]["a"] == pytest.approx([0.5, 0.35])
    assert found["methods"]["EW"]["b"] == pytest.approx([0.65])
    # Seed by seed, in percent: a is (20 + 0) / 2 and (0 + 25) / 2, b is −20 and 12.5.
    runs = found["delta_runs"]["VisATB"]
    assert runs["tasks"] == {"a": pytest.approx([10, 12.5]), "b": pytest.approx([-20, 12.5])}
    assert runs["delta_i"] == pytest.approx([-5, 12.5])
    assert runs["delta_e"] == pytest.approx([10, 0])
    assert found["delta_runs"]["EW"]["delta_i"] == [0, 0]
    assert found["delta_i"] == {"EW": 0, "VisATB": pytest.approx(3.75)}
    assert found["delta_e"] == {"EW": 0, "VisATB": pytest.approx(5)}

    layout.score("test", "b", "EW#2").unlink()
    with pytest.raises(EvaluationError, match=r"b_EW@2\.json.*should have made"):
        write_results(experiment, layout)


def test_results_of_one_run_each_are_what_they_were(tmp_path):
    """All that stood there before repeats came stands there still; scores of other repeats do not enter."""
    experiment = of(tmp_path, methods=["EW", "VisATB", "STL"])
    layout = Layout(tmp_path / "work")
    for task, values in {"a": (0.5, 0.7, 0.6), "b": (0.3, 0.2, 0.25)}.items():
        for model, value in zip(("EW", "VisATB", f"STL:{task}"), values, strict=True):
            write_score(layout, task, model, value)
            write_score(layout, task, f"{model}#2", 0.9)
    found = results_of(experiment, layout)
    new = ("runs", "repeats", "delta_runs", "stl_runs", "comparisons", "words")
    before = {key: found[key] for key in found if key not in new}
    assert before == {
        "baseline": "STL",
        "tasks": ["a", "b"],
        "metrics": {task: [{"metric": "em", "higher_is_better": True}] for task in "ab"},
        "methods": {
            "EW": {"a": [0.5], "b": [0.3]}, "VisATB": {"a": [0.7], "b": [0.2]}, "STL": {"a": [0.6], "b": [0.25]},
        },
        "stl_models": {"a": "STL:a", "b": "STL:b"},
        "waiting": {},
        "delta_i": {"EW": 1.666666666666666, "VisATB": -1.666666666666666, "STL": 0.0},
        "delta_e": {"EW": 8.333333333333332, "VisATB": 9.999999999999998, "STL": 0.0},
        "delta_tasks": ["a", "b"],
    }  # fmt: skip
    assert found["runs"] == {
        method: {task: [values] for task, values in row.items()} for method, row in found["methods"].items()
    }
    assert found["delta_runs"]["EW"]["delta_i"] == [found["delta_i"]["EW"]]


def test_a_baseline_of_nothing_in_one_run_is_said(tmp_path):
    experiment = of(tmp_path, repeats={"finals": 2})
    layout = Layout(tmp_path / "work")
    for task in "ab":
        for model, value in {"EW": 0.5, "EW#2": 0.0, "VisATB": 0.6, "VisATB#2": 0.6}.items():
            write_score(layout, task, model, value)
    found = results_of(experiment, layout)
    assert found["delta_i"] == found["delta_runs"] == {}
    assert "repeat 2: EW on a" in found["delta_problem"]


def test_score_from_outside_is_complete_with_all_runs(tmp_path):
    experiment = of(tmp_path, {"a": {"score": "a.json"}, "b": {}}, repeats={"finals": 2})
    layout = Layout(tmp_path / "work")
    for model in ("EW", "EW#2", "VisATB", "VisATB#2"):
        write_score(layout, "b", model, 0.5)
    (tmp_path / "a.json").write_text(json.dumps({"EW": 0.4, "EW#2": 0.6, "VisATB": 0.5}))
    found = results_of(experiment, layout)
    assert found["waiting"] == {"a": f"{tmp_path / 'a.json'} (VisATB#2)"}
    assert found["methods"]["VisATB"]["a"] is None
    assert found["methods"]["EW"]["a"] == [0.5]
    assert found["delta_tasks"] == ["b"]
    (tmp_path / "a.json").write_text(json.dumps({"EW": 0.4, "EW#2": 0.6, "VisATB": 0.5, "VisATB#2": 0.7}))
    found = results_of(experiment, layout)
    assert found["waiting"] == {}
    assert found["runs"]["VisATB"]["a"] == [[0.5], [0.7]]
    assert found["delta_tasks"] == ["a", "b"]
