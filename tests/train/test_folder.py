"""Whose an output folder is, and what may happen to it."""

import json
from pathlib import Path

import pytest

from llava.train.arguments import UsageError, parse_arguments
from llava.train.folder import CARD, SETTINGS, begin, inspect, publish, saving_folder, write_json
from llava.train.run_card import run_settings
from llava.train.tasks import resolve_tasks

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
