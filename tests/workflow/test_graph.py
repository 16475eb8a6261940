"""The models of each form, and what comes after what."""

from pathlib import Path

import pytest

from tests.workflow.world import write_experiment
from visatb.experiment.models import models, stl_model
from visatb.experiment.read import load_experiment
from visatb.workflow.jobs import jobs


def of(folder: Path, tasks=None, **settings):
    return load_experiment(write_experiment(folder, tasks or {"a": {}, "b": {}, "c": {}}, **settings))


def by_name(experiment):
    return {model.name: model for model in models(experiment)}


def test_standard_form(tmp_path):
    found = by_name(of(tmp_path))
    assert list(found) == ["mini", "plus_mini:a", "plus_mini:b", "plus_mini:c", "EW", "VisATB"]
    assert dict(found["mini"].data) == {"a": "mini", "b": "mini", "c": "mini"}
    assert dict(found["plus_mini:b"].data) == {"a": "mini", "b": "large", "c": "mini"}
    assert dict(found["EW"].data) == {"a": "whole", "b": "whole", "c": "whole"}
    assert found["plus_mini:b"].asked["val"] == ("a", "b", "c")
    assert found["plus_mini:b"].asked["test"] == ()
    assert found["EW"].asked["test"] == ("a", "b", "c")
    assert found["EW"].asked["val"] == ()


def test_precise_difficulty_adds_single_runs(tmp_path):
    found = by_name(of(tmp_path, weighting={"difficulty": "precise"}))
    extra = [name for name in found if name.startswith("single")]
    assert extra == [f"{kind}:{task}" for task in "abc" for kind in ("single", "single_mini")]
    assert found["single:b"].data == (("b", "large"),)
    assert found["single_mini:b"].data == (("b", "mini"),)
    assert found["single:b"].asked["val"] == found["single_mini:b"].asked["val"] == ("b",)


def test_simple_form(tmp_path):
    found = by_name(of(tmp_path, weighting={"form": "simple"}, methods=[]))
    assert list(found) == ["base"] + [f"{kind}:{task}" for task in "abc" for kind in ("single", "single_mini")]
    assert found["base"].data == ()
    assert found["single:b"].asked["val"] == ("a", "b", "c")
    assert found["single_mini:b"].asked["val"] == ("b",)


def test_groups_are_units_but_stl_is_by_task(tmp_path):
    tasks = {"a": {"group": "g"}, "b": {}, "c": {"group": "g"}}
    found = by_name(of(tmp_path, tasks, methods=["EW", "STL"]))
    assert list(found) == ["mini", "plus_mini:g", "plus_mini:b", "EW", "STL:a", "STL:b", "STL:c"]
    assert dict(found["plus_mini:g"].data) == {"a": "large", "b": "mini", "c": "large"}
    assert found["STL:c"].data == (("c", "whole"),)


def test_fixed_task_has_no_proxy_no_questions_and_no_stl(tmp_path):
    tasks = {"a": {}, "chat": {"weight": 1.0}, "b": {}}
    found = by_name(of(tmp_path, tasks, methods=["EW", "STL"]))
    assert list(found) == ["mini", "plus_mini:a", "plus_mini:b", "EW", "STL:a", "STL:b"]
    assert dict(found["plus_mini:a"].data) == {"a": "large", "chat": "mini", "b": "mini"}
    assert dict(found["EW"].data) == {"a": "whole", "chat": "whole", "b": "whole"}
    assert found["mini"].asked["val"] == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "reused"),
    [
        ({"weighting": {"difficulty": "precise"}}, True),
        ({"weighting": {"form": "simple"}}, True),
        ({}, False),
        ({"weighting": {"difficulty": "precise"}, "subsets": {"large": 0.5}}, False),
        ({"weighting": {"difficulty": "precise"}, "stl_steps": "equal"}, False),
        ({"weighting": {"difficulty": "precise"}, "proxies": "lora"}, False),
        ({"weighting": {"difficulty": "precise"}, "overrides": {"stl": {"learning_rate": 1}}}, False),
    ],
)
def test_stl_reuses_a_run_that_is_the_same(tmp_path, settings, reused):
    experiment = of(tmp_path, methods=["STL"], **settings)
    found = by_name(experiment)
    assert stl_model(experiment, "a") == ("single:a" if reused else "STL:a")
    assert ("STL:a" in found) is not reused
    assert found[stl_model(experiment, "a")].asked["test"] == ("a",)


def test_order_of_jobs(tmp_path):
    listed = jobs(of(tmp_path, methods=["VisATB", "EW", "STL"]))
    names = [job.name for job in listed]
    for job in listed:
        assert all(names.index(before) < names.index(job.name) for before in job.after), job
    after = {job.name: job.after for job in listed}
    assert set(after["weights"]) == {"mini", "plus_mini:a", "plus_mini:b", "plus_mini:c"}
    assert "weights" in after["VisATB"]
    assert "weights" not in after["EW"]
    assert {"VisATB", "EW", "STL:a"} <= set(after["results"])
