"""Whose an output folder is, and what may happen to it."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from llava.train.arguments import PARTS, UsageError, parse_arguments
from llava.train.folder import CARD, SETTINGS, begin, inspect, publish, saving_folder, write_json
from llava.train.run_card import run_settings
from llava.train.tasks import resolve_tasks
from llava.train.without_effect import WITHOUT_EFFECT

SETTINGS_A = {"learning_rate": 2e-5, "tasks": {"names": ("A", "B")}}
SETTINGS_B = {"learning_rate": 1e-5, "tasks": {"names": ("A", "B")}}


def fill(folder, settings, finished=False):
    begin(folder, settings, "new")
    (folder / "checkpoint-3").mkdir()
    (folder / "model.safetensors").write_text("old")
    (folder / "notes.txt").write_text("mine")
    if finished:
        write_json(folder / CARD, {})


def test_new_unfinished_finished(tmp_path):
    folder = tmp_path / "run"
    assert inspect(folder, SETTINGS_A) == "new"
    assert not folder.exists()  # looking changes nothing
    begin(folder, SETTINGS_A, "new")
    assert inspect(folder, SETTINGS_A) == "unfinished"
    write_json(folder / CARD, {})
    assert inspect(folder, SETTINGS_A) == "finished"


def test_another_runs_folder_is_refused_and_named(tmp_path):
    fill(tmp_path, SETTINGS_B)
    with pytest.raises(UsageError, match=r"another run, which differs in learning_rate \(1e-05 there, 2e-05 here\)"):
        inspect(tmp_path, SETTINGS_A)
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "train.log").write_text("")
    assert inspect(tmp_path, SETTINGS_A) == "new"  # a redirected log is no run
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"not empty and not of this program \(thesis.tex"):
        inspect(tmp_path, SETTINGS_A)


def test_overwriting_replaces_a_run_but_not_other_files(tmp_path):
    fill(tmp_path, SETTINGS_B, finished=True)
    assert inspect(tmp_path, SETTINGS_A, overwrite=True) == "new"
    begin(tmp_path, SETTINGS_A, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", SETTINGS]
    assert json.loads((tmp_path / SETTINGS).read_text())["learning_rate"] == 2e-5


def test_overwriting_keeps_ones_own_unfinished_work(tmp_path):
    fill(tmp_path, SETTINGS_A)
    assert inspect(tmp_path, SETTINGS_A, overwrite=True) == "unfinished"
    begin(tmp_path, SETTINGS_A, "unfinished")
    assert (tmp_path / "checkpoint-3").is_dir()
    write_json(tmp_path / CARD, {})
    assert inspect(tmp_path, SETTINGS_A, overwrite=True) == "new"


def test_results_are_published_with_the_configuration_last(tmp_path, monkeypatch):
    saving = saving_folder(tmp_path)
    saving.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (saving / name).write_text(name)
    moved = []
    replace = __import__("os").replace
    monkeypatch.setattr("os.replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    publish(tmp_path)
    assert moved[-1] == "config.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_run_is_the_same_where_its_data_files_have_moved(tmp_path):
    def settings(name: str) -> dict:
        files = [str(tmp_path / name / file) for file in ("b.json", "a.json")]
        for file in files:
            write_json(Path(file), [])
        tasks = json.dumps({files[1]: "A", files[0]: "B"})
        words = ["--model_name_or_path", "m", "--output_dir", "o", "--data_path", *files, "--file_tasks", tasks]
        parsed = parse_arguments([*words, "--use_cpu", "True", "--bf16", "False"])
        described = [{"sha256": "1"}, {"sha256": "2"}]
        return run_settings(*parsed, resolve_tasks(*parsed[1:]), described)

    assert settings("here")["file_tasks"] == ["B", "A"]
    assert settings("here") == settings("there")
    older = settings("here") | {"file_tasks": json.dumps({"/here/b.json": "B", "/here/a.json": "A"})}
    begin(tmp_path / "run", older, "new")
    assert inspect(tmp_path / "run", settings("there")) == "unfinished"


def test_a_run_begun_on_a_cpu_goes_on_elsewhere(tmp_path, monkeypatch):
    """`use_cpu` and what else says how a run goes do not decide what comes out of it; nor did older folders' say."""
    data = tmp_path / "data.json"
    write_json(data, [])

    def settings(*more: str) -> dict:
        words = ["--model_name_or_path", "m", "--output_dir", "o", "--data_path", str(data), "--bf16", "False", *more]
        parsed = parse_arguments(words)
        return run_settings(*parsed, resolve_tasks(*parsed[1:]), [{"sha256": "1"}])

    on_cpu = settings("--use_cpu", "True", "--tf32", "True", "--gradient_checkpointing", "True")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)  # as where there is a GPU
    elsewhere = settings("--tf32", "True", "--eval_steps", "7")
    assert on_cpu == elsewhere
    assert on_cpu["weight_method"] == "EW"
    older = on_cpu | {"use_cpu": True, "tf32": None, "activation_checkpointing": True}
    begin(tmp_path / "run", older, "new")
    assert inspect(tmp_path / "run", elsewhere) == "unfinished"
    with pytest.raises(UsageError, match="weight_decay"):
        inspect(tmp_path / "run", settings("--weight_decay", "0.5"))


def test_names_without_effect_are_arguments():
    """A name that transformers or we have dropped would protect nothing."""
    names = {field.name for part in PARTS for field in fields(part)}
    gone = {"logging_dir", "overwrite_output_dir"}  # in older run folders
    assert WITHOUT_EFFECT - names - gone == set()
    assert "learning_rate" in names - WITHOUT_EFFECT
