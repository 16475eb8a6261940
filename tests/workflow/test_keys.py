"""Which steps each setting of an experiment changes, and that no setting of the schema is left out of that list."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tests.workflow.world import guard, write_experiment
from visatb.experiment.read import load_experiment
from visatb.experiment.schema import Experiment
from visatb.workdir.layout import Layout
from visatb.workdir.state import noted_keys
from visatb.workflow.keys import compute, token_reading

Content = dict[str, Any]

# Words for what changes. A model's steps are "<model> <step>"; a job of one step is that step.
DATA = {"check", "subsets"}
VAL = {f"{model} {step}" for model in ("mini", "plus_mini:a", "plus_mini:b") for step in ("answer val", "score val")}
PROXIES = VAL | {f"{model} train" for model in ("mini", "plus_mini:a", "plus_mini:b")}


def answered(*names: str, steps: tuple[str, ...] = ("answer test", "score test")) -> set[str]:
    return {f"{name} {step}" for name in names for step in steps}


def trained(*names: str) -> set[str]:
    return answered(*names, steps=("train", "answer test", "score test"))


END = {"results", "report"}
AFTER_VAL = {"weights", *trained("VisATB"), *END}  # what another λ changes
FINALS = trained("EW", "VisATB")
STL = trained("STL:a", "STL:b")
MODELS = PROXIES | FINALS | STL | {"weights"} | END
TESTS = answered("EW", "VisATB", "STL:a", "STL:b")
SCORES_VAL = {step for step in VAL if "score" in step}


def put(*path: str, value: Any) -> Callable[[Content, Path], None]:
    """Sets a value of the experiment file."""

    def change(content: Content, _: Path) -> None:
        *parents, last = path
        for parent in parents:
            content = content.setdefault(parent, {})
        content[last] = value

    return change


def grow(task: str, split: str) -> Callable[[Content, Path], None]:
    """Adds a record to a file of a task."""

    def change(content: Content, folder: Path) -> None:
        path = folder / content["tasks"][task][split]
        records = json.loads(path.read_text())
        path.write_text(json.dumps([*records, {**records[0], "id": "one more"}]))

    return change


def outside(content: Content, folder: Path) -> None:
    """Task a's test score comes from a file of the user's."""
    (folder / "score.json").write_text("{}")
    content["tasks"]["a"]["score"] = "score.json"


CASES: dict[str, tuple[Callable[[Content, Path], None], set[str]]] = {
    "name": (put("name", value="other"), {"report"}),
    "model.path": (put("model", "path", value="somewhere/8b"), {"check"} | MODELS),
    "model.vision_tower": (put("model", "vision_tower", value="some/tower"), {"check"} | MODELS),
    "model.projector": (put("model", "projector", value="some/projector"), {"check"} | MODELS),
    "model.template": (put("model", "template", value="plain"), {"check"} | MODELS),
    "model.family": (put("model", "family", value="llava"), set()),
    "model.parameters": (put("model", "parameters", value="7B"), set()),
    "tasks.train": (grow("a", "train"), DATA | MODELS - trained("STL:b")),
    "tasks.val": (grow("a", "val"), DATA | VAL | AFTER_VAL),
    "tasks.test": (grow("a", "test"), DATA | answered("EW", "VisATB", "STL:a") | END),
    "tasks.metric": (
        put("tasks", "a", "metric", value=["gleu"]),
        {"check"} | SCORES_VAL | AFTER_VAL | answered("EW", "STL:a", steps=("score test",)),
    ),
    "tasks.weight": (put("tasks", "chat", "weight", value=2.0), AFTER_VAL),
    "tasks.score": (outside, answered("EW", "VisATB", "STL:a", steps=("score test",)) | END),
    "image_folder": (put("image_folder", value="."), {"check"} | MODELS),
    "subsets.large": (
        put("subsets", "large", value=0.9),
        {"subsets", *AFTER_VAL} | {step for step in PROXIES if "plus_mini" in step},
    ),
    "subsets.mini": (put("subsets", "mini", value=0.25), {"subsets", *AFTER_VAL} | PROXIES),
    "subsets.seed": (put("subsets", "seed", value=1), {"check", "subsets", *AFTER_VAL} | PROXIES),
    "weighting.temperature": (put("weighting", "temperature", value=1.0), AFTER_VAL),
    "weighting.alpha.out": (put("weighting", "alpha", value={"out": 0.3, "in": 0.2}), AFTER_VAL),
    "weighting.alpha.in_": (put("weighting", "alpha", value={"in": 0.3, "difficulty": 0.45}), AFTER_VAL),
    "weighting.alpha.difficulty": (put("weighting", "alpha", value={"difficulty": 0.6, "in": 0.15}), AFTER_VAL),
    "weighting.on_degenerate": (put("weighting", "on_degenerate", value="clip"), AFTER_VAL),
    "weighting.shrink": (put("weighting", "shrink", value="auto"), AFTER_VAL),
    "weighting.apply": (put("weighting", "apply", value="sampling"), {*trained("VisATB"), *END}),
    "weighting.validation": (put("weighting", "validation", value="loss"), VAL | AFTER_VAL),
    "weighting.bootstrap": (put("weighting", "bootstrap", value=10), {"weights", "report"}),
    "stl_steps": (put("stl_steps", value="equal"), STL | END),
    "max_val_samples": (put("max_val_samples", value=4), DATA | VAL | AFTER_VAL),
    "proxies": (put("proxies", value="lora"), {"check"} | PROXIES | AFTER_VAL),
    "keep_proxies": (put("keep_proxies", value="all"), set()),
    "repeats.redraw": (put("repeats", "redraw", value=False), set()),  # but with repeats: test_repeats.py
    "seed": (put("seed", value=7), MODELS),
    "global_batch_size": (put("global_batch_size", value=8), {"check"} | MODELS),
    "training": (put("training", "learning_rate", value=1e-4), {"check"} | MODELS),
    "overrides": (put("overrides", value={"finals": {"learning_rate": 1e-4}}), {"check"} | FINALS | END),
    "generation.batch_size": (put("generation", "batch_size", value=3), set()),
    "generation.max_new_tokens": (put("generation", "max_new_tokens", value=3), VAL | TESTS | AFTER_VAL),
    "generation.temperature": (put("generation", "temperature", value=0.5), VAL | TESTS | AFTER_VAL),
    "generation.top_p": (put("generation", "top_p", value=0.5), VAL | TESTS | AFTER_VAL),
    "generation.num_beams": (put("generation", "num_beams", value=2), VAL | TESTS | AFTER_VAL),
    "launcher.kind": (put("launcher", "kind", value="deepspeed"), set()),
    "launcher.gpus_per_job": (put("launcher", "gpus_per_job", value="all"), set()),
    "launcher.processes": (put("launcher", "processes", value=2), set()),
    "launcher.threads": (put("launcher", "threads", value=2), set()),
}
# What changes which models there are has a case of its own below, and tests of its own in test_graph.py.
MODELS_CHANGE = {"tasks.group", "grouping", "methods", "weighting.form", "weighting.difficulty"}
MODELS_CHANGE |= {"repeats.proxies", "repeats.finals", "guards.val", "guards.metric", "guards.guard"}


def fields(schema: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[str]:
    """Every field that an experiment file can set, with dots between the levels."""
    for name, field in schema.model_fields.items():
        inner = [part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_part(part)]
        if inner:
            yield from fields(inner[0], f"{prefix}{name}.")
        elif not field.exclude:
            yield prefix + name


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def experiment_file(folder: Path, *more: str) -> Path:
    return write_experiment(
        folder,
        {"a": {}, "b": {}, "chat": {"weight": 1.0}, **{task: {} for task in more}},
        subsets={"large": 1.0, "mini": 0.5},
        methods=["EW", "VisATB", "STL"],
        max_val_samples=6,
    )


def steps_of(path: Path) -> dict[str, str]:
    """Step → key, a model's steps as "<model> <step>"."""
    keys = compute(load_experiment(path), Layout(path.parent / "work"))
    noted = [(job, name, key) for job, steps in keys.items() for name, key in noted_keys(steps).items()]
    return {name if name == job else f"{job} {name}": key for job, name, key in noted}


def after(path: Path, change: Callable[[Content, Path], None]) -> dict[str, str]:
    content = copy.deepcopy(yaml.safe_load(path.read_text()))
    change(content, path.parent)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return steps_of(path)


def test_every_field_has_its_case():
    assert set(fields()) == set(CASES) | MODELS_CHANGE


@pytest.mark.parametrize("field", CASES)
def test_a_setting_changes_the_steps_that_depend_on_it(tmp_path, field):
    change, expected = CASES[field]
    path = experiment_file(tmp_path)
    before = steps_of(path)
    changed = after(path, change)
    assert {step for step in before | changed if before.get(step) != changed.get(step)} == expected


def test_groups_change_the_finals_trained_with_them(tmp_path):
    """RLW, DWA and the others draw or observe by group: the same data and λ, another training."""
    path = experiment_file(tmp_path, "c")
    before = steps_of(path)
    changed = after(path, lambda content, _: [task.update(group="g") for task in list(content["tasks"].values())[:2]])
    assert before["EW train"] != changed["EW train"]
    assert before["STL:a train"] == changed["STL:a train"]
    assert before["mini train"] == changed["mini train"]
    assert before["weights"] != changed["weights"]


def test_the_seed_chooses_among_the_questions_only_where_some_are_left_out(tmp_path):
    """The base model is not trained: nothing but its questions depends on the seed of the subsets."""
    path = experiment_file(tmp_path)
    all_asked = after(path, lambda content, _: content.update(weighting={"form": "simple"}, max_val_samples=None))
    assert all_asked["base answer val"] == after(path, put("subsets", "seed", value=1))["base answer val"]
    some_asked = after(path, put("max_val_samples", value=6))
    assert some_asked["base answer val"] != after(path, put("subsets", "seed", value=2))["base answer val"]


def test_a_base_whose_projector_is_drawn_depends_on_the_seed(tmp_path):
    """One whose projector is given, or which is a model already, is the same for every seed."""
    path = experiment_file(tmp_path)
    simple, seed = put("weighting", value={"form": "simple"}), put("seed", value=7)
    drawn = {}
    for parts in ({}, {"vision_tower": "a/tower"}, {"vision_tower": "a/tower", "projector": "a/projector"}):
        after(path, simple)
        before = after(path, lambda content, _, parts=parts: content["model"].update(parts))
        drawn[tuple(parts)] = before["base train"] != after(path, seed)["base train"]
        after(path, lambda content, _: content.pop("seed"))
    assert drawn == {(): False, ("vision_tower",): True, ("vision_tower", "projector"): False}


@pytest.mark.parametrize(("name", "value"), [("weighting.form", "simple"), ("weighting.difficulty", "precise")])
def test_the_form_changes_weights(tmp_path, name, value):
    path = experiment_file(tmp_path)
    before = steps_of(path)
    changed = after(path, put(*name.split("."), value=value))
    assert before["weights"] != changed["weights"]
    assert before["VisATB train"] != changed["VisATB train"]
    assert before["EW train"] == changed["EW train"]


def test_a_guard_enters_neither_the_proxies_nor_what_is_trained_with_their_weights(tmp_path):
    """Its questions are asked of the proxies, and of the base; λ, and all that is trained, stay as they are."""
    path = experiment_file(tmp_path)
    before = steps_of(path)
    guarded = after(path, lambda content, _: content["tasks"].update(calm=guard(path.parent, limit=0.01)))
    asked = {f"{m} {s} guard" for m in ("base", "mini", "plus_mini:a", "plus_mini:b") for s in ("answer", "score")}
    made = {*asked, "base train", *DATA, "weights", *END}
    assert {step for step in before | guarded if before.get(step) != guarded.get(step)} == made
    looser = after(path, put("tasks", "calm", "guard", value=0.5))
    assert {step for step in guarded if guarded[step] != looser[step]} == {"weights", "report"}
    other = after(path, put("tasks", "calm", "metric", value="gleu"))
    scored = {step for step in asked if "score" in step}
    assert {step for step in looser if looser[step] != other[step]} == {"check", *scored, "weights", *END}


def test_shrunken_weights_depend_on_the_draws_that_tell_their_noise(tmp_path):
    path = experiment_file(tmp_path)
    before = after(path, put("weighting", "shrink", value="auto"))
    changed = after(path, put("weighting", "bootstrap", value=10))
    assert {step for step in before if before[step] != changed[step]} == AFTER_VAL


def test_another_method_leaves_the_others(tmp_path):
    path = experiment_file(tmp_path)
    before = steps_of(path)
    changed = after(path, put("methods", value=["EW", "TLA", "VisATB", "STL"]))
    assert {step for step in before | changed if before.get(step) != changed.get(step)} == {
        "subsets",  # its list names every model
        *trained("TLA"),
        *END,
    }


def test_arguments_without_effect_leave_every_key(tmp_path):
    path = experiment_file(tmp_path)
    before = steps_of(path)
    assert before == after(path, put("training", value={"per_device_train_batch_size": 2, "logging_steps": 5}))
    measured = {"eval_strategy": "steps", "eval_steps": 50, "ddp_find_unused_parameters": False, "use_cpu": True}
    assert before == after(path, put("training", value=measured))
    assert before != after(path, put("training", value={"weight_decay": 0.5}))
    micro = [{"loss_norm": "micro_batch", "per_device_train_batch_size": size} for size in (1, 2)]
    assert after(path, put("training", value=micro[0])) != after(path, put("training", value=micro[1]))


def test_models_whose_tokenizer_gave_other_tokens_have_other_keys(tmp_path):
    """With tokenizer.model alone, or beside a tokenizer.json that joins spaces first: what they made is made again."""
    model = tmp_path / "model"
    model.mkdir()

    def merges(*pairs):
        (model / "tokenizer.json").write_text(json.dumps({"model": {"merges": pairs}}))

    merges(["▁", "▁"])
    assert token_reading(str(model)) == {}  # no sentencepiece model to read it by
    (model / "tokenizer.model").touch()
    assert token_reading(str(model)) == {"tokens": 2}
    merges(["t", "h"], ["▁", "▁"])
    assert token_reading(str(model)) == {}
    (model / "tokenizer.json").unlink()
    assert token_reading(str(model)) == {"tokens": 2}
    assert token_reading("a/hub-name") == {}


def test_a_changed_model_is_another_model(tmp_path):
    """By content for files of a model that are small, by size and time for large ones; the same bytes are the same."""
    path = experiment_file(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"layers": 2, "hidden_size": 4096}')
    (model / "model.safetensors").touch()
    os.truncate(model / "model.safetensors", 1 << 27)  # a hole, which takes no space
    before = after(path, put("model", "path", value=str(model)))

    os.utime(model / "config.json", (1, 1))
    assert steps_of(path) == before
    (model / "config.json").write_text('{"layers": 3, "hidden_size": 4096}')
    smaller = steps_of(path)
    assert smaller["mini train"] != before["mini train"]
    os.utime(model / "model.safetensors", (1, 1))
    assert steps_of(path)["mini train"] != smaller["mini train"]
