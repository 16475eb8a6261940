"""Whole runs with stand-ins for training and answering: what is run, what is run again, and what is refused."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.workflow.runs import Run
from tests.workflow.world import write_experiment, write_task
from visatb.commands import status
from visatb.workflow.status import read_status

SMALL = {"subsets": {"mini": 0.25}, "global_batch_size": 4, "weighting": {"bootstrap": 20, "temperature": 0.5}}


def experiment(folder: Path, tasks=None, **settings) -> Run:
    return Run(write_experiment(folder, tasks or {"a": {}, "b": {}}, **{**SMALL, **settings}))


def change(run: Run, **settings) -> None:
    content = yaml.safe_load(run.experiment.read_text())
    run.experiment.write_text(yaml.safe_dump({**content, **settings}, sort_keys=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the standard form to its report, with STL."""
    run = experiment(tmp_path_factory.mktemp("standard"), methods=["EW", "VisATB", "STL"])
    output, errors = run(REAL_REPORT="1")
    return run, output, errors, run.calls()


def test_run_goes_to_the_report(finished):
    run, output, errors, calls = finished
    assert output.strip() == str(run.workdir / "report" / "index.html")
    assert Path(output.strip()).is_file()
    trained = ["mini", "plus_mini-a", "plus_mini-b", "EW", "VisATB", "STL-a", "STL-b"]
    assert [call for call in calls if call.startswith("train")] == sorted(f"train {name}" for name in trained)
    assert "answer plus_mini:a val" in calls
    assert "answer STL:b test" in calls
    assert "answer mini test" not in calls
    assert "finished" in errors


def test_files_of_the_work_folder(finished):
    run, *_ = finished
    weights, matrix, results = (run.read(f"{name}.json") for name in ("weights", "matrix", "results"))
    assert set(weights["weights"]) == {"a", "b"}
    assert matrix["plus_mini"]["a"]["a"] > matrix["mini"]["a"]
    assert matrix["answers"]["plus_mini"]["a"]["b"]["questions"] == 12
    assert results["baseline"] == "STL"
    assert results["delta_i"]["STL"] == 0
    assert set(results["methods"]) == {"EW", "VisATB", "STL"}
    assert run.read("models/VisATB/run_card.json")["weights"] == weights["weights"]
    cost = run.read("cost.json")
    assert cost["mini"]["samples"] == 8
    assert cost["EW"] | {"train_seconds": 0, "infer_seconds": 0} == {
        "train_seconds": 0, "infer_seconds": 0, "samples": 32, "questions": 20, "steps": 3, "device": "stand-in",
    }  # fmt: skip
    assert run.read("scores/val/a_plus_mini-b.json")["model"] == "plus_mini:b"
    assert len(run.read("scores/val/a_plus_mini-b.per_sample.json")["samples"]) == 12


def test_what_is_doubtful_about_the_weights_is_said(finished, capsys):
    """In the run's last lines, and in `visatb status`, as the weights file has it."""
    run, _, errors, _ = finished
    warnings = run.read("weights.json")["warnings"]
    assert any("validation questions only" in text for text in warnings)
    assert status.main([str(run.workdir), "--once"]) == 0
    for shown in (errors[errors.rindex("jobs done") :], capsys.readouterr().out):
        for text in warnings:
            assert f"λ: {text}" in " ".join(shown.split())


def test_weights_of_proxies_go_and_those_of_methods_stay(finished):
    run, *_ = finished
    kept = {file.parent.name for file in (run.workdir / "models").glob("*/model.safetensors")}
    assert kept == {"EW", "VisATB"}
    assert not list((run.workdir / "models").glob("*/checkpoint-*"))
    assert (run.workdir / "models" / "mini" / "run_card.json").exists()


def test_finished_run_does_nothing_again(finished):
    run, *_ = finished
    run()
    assert run.calls() == []
    assert run("--dry-run")[0] == ""


def test_changed_settings_run_again_what_depends_on_them(finished, tmp_path):
    run, *_ = finished
    before = run.read("weights.json")

    change(run, weighting={**SMALL["weighting"], "temperature": 0.7})
    assert run("--dry-run")[0].split() == ["weights", "VisATB", "results", "report"]
    run()
    assert run.calls() == ["answer VisATB test", "train VisATB"]
    assert run.read("weights.json")["weights"] != before["weights"]

    change(run, weighting={**SMALL["weighting"], "temperature": 0.7, "bootstrap": 30})
    run()
    assert run.calls() == []  # intervals only

    change(run, methods=["EW", "VisATB", "STL", "TLA"])
    run()
    assert run.calls() == ["answer TLA test", "train TLA"]

    change(run, overrides={"stl": {"learning_rate": 1.0}})
    run()
    assert run.calls() == [f"{what}" for what in sorted(
        ["answer STL:a test", "answer STL:b test", "train STL-a", "train STL-b", "check"]
    )]  # fmt: skip

    data = Path(run.experiment.parent / "b_test-10.json")
    data.write_text(json.dumps(json.loads(data.read_text())[:8]))
    run()
    calls = run.calls()
    assert "train STL-b" in calls  # its weights were not kept
    assert "answer EW test" in calls
    assert not {"train EW", "train VisATB", "train mini", "train STL-a", "answer mini val"} & set(calls)


def test_changed_image_is_noticed(tmp_path):
    """Only what has the image in its data is done again; a file that no record names does not count."""
    write_task(tmp_path, "a", {"train": 16, "val": 12})
    content = json.loads((tmp_path / "a_train-16.json").read_text())
    image = tmp_path / "images" / "only_in_training.png"
    image.write_bytes((tmp_path / "images" / content[0]["image"]).read_bytes())
    content[0]["image"] = image.name
    (tmp_path / "a_train-16.json").write_text(json.dumps(content))
    tasks = {"a": {"train": "a_train-16.json", "val": "a_val-12.json"}, "b": {}}
    run = experiment(tmp_path, tasks, methods=[], keep_proxies="weights")
    run()
    assert run("--dry-run")[0] == ""
    (tmp_path / "images" / "unused.png").write_bytes(image.read_bytes())
    assert run("--dry-run")[0] == ""
    Image.new("RGB", (28, 28), (9, 9, 9)).save(image)
    assert run("--dry-run")[0].split() == [
        "check",
        "mini",
        "plus_mini:a",
        "plus_mini:b",
        "weights",
        "results",
        "report",
    ]


def test_metric_change_scores_again_without_answering(tmp_path):
    run = experiment(tmp_path, methods=[])
    run()
    run.calls()
    content = yaml.safe_load(run.experiment.read_text())
    content["tasks"]["a"]["metric"] = ["em", "gleu"]
    run.experiment.write_text(yaml.safe_dump(content))
    run()
    assert run.calls() == ["check"]
    assert [one["metric"] for one in run.read("scores/val/a_mini.json")["scores"]] == ["em", "gleu"]


@pytest.mark.slow
def test_precise_simple_and_grouped_forms_reach_weights(tmp_path):
    precise = experiment(tmp_path / "precise", methods=[], weighting={"difficulty": "precise", "bootstrap": 0})
    precise()
    assert set(precise.read("matrix.json")) >= {"mini", "plus_mini", "single", "single_mini"}

    simple = experiment(tmp_path / "simple", methods=["EW", "STL"], weighting={"form": "simple", "bootstrap": 0})
    simple()
    calls = simple.calls()
    assert "answer base val" in calls
    assert "train base" not in calls
    assert "answer single:a test" in calls  # STL's run is the same
    assert not [call for call in calls if "STL" in call]
    assert simple.read("results.json")["methods"]["STL"]["a"]

    tasks = {"a": {"group": "g"}, "b": {"group": "g"}, "c": {}, "chat": {"weight": 1.5}}
    grouped = experiment(tmp_path / "grouped", tasks, methods=["VisATB"])
    grouped()
    weights = grouped.read("weights.json")["weights"]
    assert weights["a"] == weights["b"] != weights["c"]
    assert weights["chat"] == 1.5
    assert grouped.read("results.json")["baseline"] == "VisATB"
    arguments = grouped.read("models/VisATB/arguments.json")
    assert json.loads(arguments[arguments.index("--task_groups") + 1]) == {"g": ["a", "b"], "c": ["c"]}


def test_minis_lie_in_the_large_subsets_and_questions_are_limited(tmp_path):
    settings = {"subsets": {"mini": 0.25, "large": 0.5}, "max_val_samples": 3, "methods": []}
    run = experiment(tmp_path, **settings)
    run()
    mini, large = (run.read(f"data/a-{name}.json") for name in ("mini_train-4", "large_train-8"))
    assert {record["id"] for record in mini} < {record["id"] for record in large}
    assert {record["task"] for record in large} == {"a"}
    assert len(run.read("data/val/a_val-3.json")) == 3
    listing = run.read("data/subsets.json")
    assert listing["models"]["plus_mini:a"]["counts"] == {"a": 8, "b": 4}


def test_score_from_outside_is_waited_for(tmp_path):
    write_task(tmp_path, "b", {"train": 16, "val": 12})
    outside = {"train": "b_train-16.json", "val": "b_val-12.json", "score": "b_scores.json"}
    run = experiment(tmp_path, {"a": {}, "b": outside})
    _, errors = run()
    assert "b waits for its score from outside" in errors
    results = run.read("results.json")
    assert results["waiting"] == {"b": str(tmp_path / "b_scores.json")}
    assert results["delta_tasks"] == ["a"]
    (tmp_path / "b_scores.json").write_text(json.dumps({"EW": 50.0, "VisATB": 55.0}))
    run.calls()
    run()
    assert run.calls() == []
    results = run.read("results.json")
    assert (results["waiting"], results["methods"]["VisATB"]["b"]) == ({}, [55.0])
    assert results["delta_tasks"] == ["a", "b"]


def test_failed_job_is_named_others_go_on_and_it_is_mended(tmp_path):
    run = experiment(tmp_path)
    _, errors = run(code=1, STAND_IN_FAILS="plus_mini-a")
    assert "plus_mini:a failed" in errors
    assert "the stand-in was told to fail" in errors
    assert "Traceback" not in errors
    assert "train plus_mini-b" in run.calls()
    states = {job.name: job.state for job in read_status(run.workdir).jobs}
    assert (states["plus_mini:a"], states["plus_mini:b"], states["weights"]) == ("failed", "done", "waiting")
    run()
    calls = run.calls()
    assert "train plus_mini-a" in calls
    assert "train plus_mini-b" not in calls


def test_two_runs_in_one_folder_are_refused(tmp_path):
    run = experiment(tmp_path, methods=[])
    first = run.start(STAND_IN_SECONDS="3")
    wait_for(lambda: (run.workdir / "models" / "mini" / "progress").exists())
    wait_for(lambda: any(job.progress for job in read_status(run.workdir).jobs if job.state == "running"))
    _, errors = run(code=2)
    assert "another run works in" in errors
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "the same command goes on from here" in errors


def test_foreign_folder_is_refused(tmp_path):
    run = experiment(tmp_path)
    run.workdir.mkdir()
    (run.workdir / "thesis.tex").write_text("")
    assert "holds other files" in run(code=2)[1]


@pytest.mark.slow
def test_keep_proxies(tmp_path):
    weights = experiment(tmp_path / "weights", methods=[], keep_proxies="weights")
    weights()
    assert (weights.workdir / "models" / "mini" / "model.safetensors").exists()
    assert not (weights.workdir / "models" / "mini" / "checkpoint-5").exists()
    everything = experiment(tmp_path / "all", methods=[], keep_proxies="all")
    everything()
    assert (everything.workdir / "models" / "mini" / "checkpoint-5").is_dir()
    assert not (everything.workdir / "models" / "mini" / "checkpoint-5" / "optimizer.pt").exists()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
