"""The commands that jobs start: their arguments parse, their batches add up, their GPUs are theirs alone."""

import json
import threading
import time
from pathlib import Path

import pytest

from llava.train.arguments import parse_arguments
from llava.train.tasks import resolve_tasks
from tests.workflow.world import write_experiment
from visatb.experiment.models import models
from visatb.experiment.read import load_experiment
from visatb.experiment.training import batch_split
from visatb.experiment.yaml_lines import ExperimentError
from visatb.workdir.layout import Layout
from visatb.workdir.subsets import Subsets, write_subsets
from visatb.workflow import devices, engine, keys
from visatb.workflow.process import StoppedError
from visatb.workflow.stage_commands import Launch, answer_arguments, train_arguments, weighting_arguments

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def prepared(tmp_path):
    """An experiment with a group and a fixed task, its subsets written, and weights."""
    tasks = {"a": {"group": "g"}, "b": {"group": "g"}, "c": {}, "chat": {"weight": 2.0}}
    settings = {"global_batch_size": 32, "methods": ["EW", "VisATB", "STL"], "stl_steps": "equal"}
    experiment = load_experiment(write_experiment(tmp_path, tasks, **settings))
    layout = Layout(tmp_path / "work")
    write_subsets(experiment, layout)
    weights = {"a": 0.5, "b": 0.5, "c": 1.5, "chat": 2.0}
    layout.weights.write_text(json.dumps({"tasks": list(weights), "weights": weights}))
    return experiment, layout, Subsets.read(layout)


def test_train_commands_parse_and_say_what_is_meant(prepared):
    experiment, layout, subsets = prepared
    for model in models(experiment):
        words = train_arguments(experiment, layout, model, subsets, Launch(4))
        base, data, training = parse_arguments(words)
        table = resolve_tasks(data, training)
        assert base.model_name_or_path == "somewhere/7b"
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 4 == 32
        assert training.learning_rate == 2e-5
        assert list(table.names) == model.tasks
        assert training.output_dir == str(layout.model(model.name))
        if model.name == "VisATB":
            assert dict(zip(table.unit_names, table.weights, strict=True)) == {"g": 0.5, "c": 1.5, "chat": 2.0}
        if model.name == "STL:a":
            assert training.max_steps == 2  # 64 samples in batches of 32
        if model.name == "plus_mini:c":
            assert len(data.data_path) == 4
            assert str(experiment.tasks["c"].train[0]) in data.data_path  # the whole is the user's own file


def test_only_the_model_of_visatb_is_told_to_sample(prepared):
    experiment, layout, subsets = prepared
    sampling = experiment.model_copy(
        update={"weighting": experiment.weighting.model_copy(update={"apply": "sampling"})}
    )
    for model in models(experiment):
        plain, drawn = (train_arguments(e, layout, model, subsets, Launch()) for e in (experiment, sampling))
        if model.name == "VisATB":
            assert parse_arguments(drawn)[1].apply_weights == "sampling"
            assert [word for word in drawn if word not in plain] == ["--apply_weights", "sampling"]
        else:
            assert drawn == plain


def test_answer_and_weighting_commands_parse(prepared):
    import inference_visatb
    import weighting_visatb

    experiment, layout, subsets = prepared
    model = next(model for model in models(experiment) if model.name == "plus_mini:g")
    arguments = inference_visatb.parser().parse_args(
        answer_arguments(experiment, layout, model, "val", subsets, "checkpoint")
    )
    assert [Path(file).name for file in arguments.question_file] == [f"{task}_val-12.json" for task in "abc"]
    assert arguments.model_name == "plus_mini:g"
    parsed = weighting_visatb.make_parser().parse_args(weighting_arguments(experiment, layout, "groups.json"))
    assert parsed.task_names == ["a", "b", "c", "chat"]
    assert parsed.fixed == [("chat", 2.0)]
    assert parsed.temperature == 0.5
    assert parsed.shrink == "none"
    assert (parsed.output, parsed.matrix_output) == (layout.weights, layout.matrix)


def test_validation_by_loss_is_asked_for_and_scored_as_such(prepared):
    import inference_visatb

    experiment, layout, subsets = prepared
    weighting = experiment.weighting.model_copy(update={"validation": "loss"})
    by_loss = experiment.model_copy(update={"weighting": weighting})
    proxy, final = (next(m for m in models(experiment) if m.name == name) for name in ("plus_mini:g", "EW"))
    for of_experiment, model, split, wanted in (
        (experiment, proxy, "val", False),
        (by_loss, proxy, "val", True),
        (by_loss, final, "test", False),
    ):
        words = answer_arguments(of_experiment, layout, model, split, subsets, "checkpoint")
        assert inference_visatb.parser().parse_args(words).truth_loss is wanted
        assert (of_experiment.metrics("a", split) == ["loss"]) is wanted


def test_every_fixed_task_reaches_the_weighting_command(tmp_path):
    import weighting_visatb

    tasks = {"a": {}, "b": {}, "c": {"weight": 2.0}, "d": {"weight": 0.5}}
    experiment = load_experiment(write_experiment(tmp_path, tasks))
    arguments = weighting_arguments(experiment, Layout(tmp_path / "work"), None)
    assert weighting_visatb.make_parser().parse_args(arguments).fixed == [("c", 2.0), ("d", 0.5)]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_training_settings_of_the_examples_parse(file, tmp_path):
    example = load_experiment(file)
    deepspeed = example.training.get("deepspeed")
    assert deepspeed is None or Path(str(deepspeed)).is_file()
    training = {key: value for key, value in example.training.items() if key != "deepspeed"}
    experiment = load_experiment(
        write_experiment(tmp_path, {"a": {}, "b": {}}, training=training, global_batch_size=example.global_batch_size)
    )
    layout = Layout(tmp_path / "work")
    write_subsets(experiment, layout)
    subsets = Subsets.read(layout)
    for model in models(experiment):
        if model.method == "EW":
            parse_arguments(train_arguments(experiment, layout, model, subsets, Launch(8)))


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "split"),
    [(128, 8, None, (16, 1)), (128, 1, None, (16, 8)), (24, 2, None, (4, 3)), (128, 2, 4, (4, 16)), (4, 1, 16, (4, 1))],
)
def test_global_batch_is_kept(tmp_path, batch, processes, micro, split):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, global_batch_size=batch))
    arguments = {} if micro is None else {"per_device_train_batch_size": micro}
    assert batch_split(experiment, arguments, processes) == split
    assert split[0] * split[1] * processes == batch


def test_batch_that_processes_do_not_divide(tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, global_batch_size=10))
    with pytest.raises(ExperimentError, match="4 processes"):
        batch_split(experiment, {}, 4)


def test_launchers():
    assert Launch(1).command("m", ["--x"]).words[1:] == ["-m", "m", "--x"]
    assert "--nproc_per_node" in Launch(2).command("m", []).words
    words = Launch(2, "deepspeed", ("4", "5")).command("m", []).words
    assert words[2] == "deepspeed.launcher.runner"
    assert words[words.index("--include") + 1] == "localhost:4,5"
    assert "deepspeed.launcher.runner" not in Launch(2, "deepspeed").command("inference_visatb", []).words


def test_keys_follow_content_not_place_or_pace(tmp_path):
    def made(folder, **settings):
        experiment = load_experiment(write_experiment(tmp_path / folder, {"a": {}, "b": {}}, **settings))
        experiment = experiment.model_copy(update={"image_folder": "images"})
        return keys.compute(experiment, Layout(tmp_path / folder / "work"))

    first = made("one", training={"learning_rate": 1})
    assert made("two", training={"learning_rate": 1, "save_steps": 7, "deepspeed": "x.json"}) == first
    changed = made("three", training={"learning_rate": 2})
    assert all(changed[name] != first[name] for name in ("mini", "EW", "VisATB", "weights", "report"))
    assert changed["subsets"] == first["subsets"]
    seeded = made("four", training={"learning_rate": 1}, subsets={"seed": 1})
    assert seeded["mini"] != first["mini"]
    assert seeded["EW"] == first["EW"]  # trained on everything


def test_gpus_are_handed_out_once(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.OFFERED, "0,1,2")
    with devices.taken(2, lambda: False, tmp_path) as first:
        assert first == ["0", "1"]
        with devices.taken(1, lambda: False, tmp_path) as second:
            assert second == ["2"]
            with pytest.raises(StoppedError), devices.taken(1, lambda: True, tmp_path):
                pass
    with devices.taken(99, lambda: False, tmp_path) as everything:
        assert everything == ["0", "1", "2"]


def test_a_job_waits_for_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.OFFERED, "0,1")
    got: list[list[str]] = []

    def wait() -> None:
        with devices.taken(2, lambda: False, tmp_path) as found:
            got.append(found)

    with devices.taken(1, lambda: False, tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.5)
        assert got == []
    waiting.join(timeout=20)
    assert got == [["0", "1"]]


def test_experiment_without_gpus_asks_for_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    experiment = load_experiment(write_experiment(tmp_path, {"a": {}, "b": {}}, launcher={"gpus_per_job": 0}))
    engine.prepare(experiment, Layout(tmp_path / "work"), engine.Options())
    planned = json.loads((tmp_path / "work" / ".workflow" / "jobs.json").read_text())
    assert {job["name"]: job["resources"] for job in planned["jobs"]}["mini"] == {}
    assert engine.parallel_jobs(experiment, 2) >= 1
    assert engine.offered_gpus(engine.Options(), experiment) == []


def test_jobs_at_once(tmp_path):
    def at_once(gpus_per_job, num_gpus):
        settings = {"launcher": {"gpus_per_job": gpus_per_job}}
        path = write_experiment(tmp_path / f"{gpus_per_job}-{num_gpus}", {"a": {}, "b": {}}, **settings)
        return engine.parallel_jobs(load_experiment(path), num_gpus)

    assert [at_once(1, 8), at_once(2, 8), at_once("all", 8), at_once(4, 2)] == [8, 4, 1, 1]


def test_visible_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.visible_gpus() == []
