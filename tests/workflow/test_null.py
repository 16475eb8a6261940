"""`visatb init --null`: one task's data become five tasks that differ in nothing but chance."""

import json
from pathlib import Path

import pytest

from tests.workflow.world import write_task
from visatb.commands.init import main
from visatb.experiment.read import load_experiment
from visatb.prepare.tiny import TASKS, TEST_SIZE, VAL_SIZE

EXAMPLE = Path(__file__).parents[2] / "examples" / "null.yaml"
COUNTS = {"train": 43, "val": 17, "test": 10}


@pytest.fixture
def data(tmp_path):
    """Two tasks; the records of one say which task they are of."""
    folder = tmp_path / "data"
    write_task(folder, "shape", {"train": 5, "val": 2, "test": 2})
    for file in write_task(folder, "colour", COUNTS).values():
        records = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps([{**record, "task": "colour"} for record in records]))
    return folder


def null(data: Path, name: str, *more: str) -> Path:
    output = data.parent / name / "check.yaml"
    assert main([str(data), "--null", "colour", "--output", str(output), "--model", "some/7b", *more]) == 0
    return output


def parts(output: Path, split: str) -> list[list[dict]]:
    experiment = load_experiment(output)
    assert list(experiment.tasks) == [f"colour-{n}" for n in range(1, 6)]
    files = [task.train[0] if split == "train" else getattr(task, split) for task in experiment.tasks.values()]
    return [json.loads(Path(file).read_text()) for file in files]


def test_parts_are_equal_disjoint_and_of_the_tasks_own_records(data):
    output = null(data, "a")
    for split, count in COUNTS.items():
        whole = json.loads((data / f"colour_{split}-{count}.json").read_text())
        found = parts(output, split)
        assert [len(part) for part in found] == [count // 5] * 5
        ids = [record["id"] for part in found for record in part]
        assert len(set(ids)) == len(ids) == count // 5 * 5
        for number, part in enumerate(found, 1):
            assert {record["task"] for record in part} == {f"colour-{number}"}
            assert all({**record, "task": "colour"} in whole for record in part)
    assert Path(str(load_experiment(output).image_folder)) == data / "images"


def test_the_draw_is_of_the_seed(data):
    first, again, other = (parts(null(data, n, "--seed", n[1]), "train") for n in ("a1", "b1", "c2"))
    assert first == again != other
    ids = [[record["id"] for record in part] for part in first]
    assert ids != [[f"colour-train-{n}" for n in range(8 * part, 8 * part + 8)] for part in range(5)], "no blocks"


@pytest.mark.parametrize(
    ("name", "text"),
    [("taste", "holds no task taste; its tasks: colour, shape"), ("shape", "2 records cannot be split into 5 tasks")],
)
def test_what_cannot_be_split(data, name, text, capsys):
    output = data.parent / "check.yaml"
    assert main([str(data), "--null", name, "--output", str(output)]) == 2
    assert text in capsys.readouterr().err
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"], "nothing half-made stays behind"


def test_no_validation_data(data, capsys):
    (data / "colour_val-17.json").unlink()
    assert main([str(data), "--null", "colour", "--output", str(data.parent / "check.yaml")]) == 2
    assert "colour has no validation data" in capsys.readouterr().err


def test_what_is_there_stays(data, capsys):
    (data.parent / "check").mkdir()
    (data.parent / "check" / "mine.txt").write_text("keep me")
    assert main([str(data), "--null", "colour", "--output", str(data.parent / "check.yaml")]) == 2
    assert "check exists" in capsys.readouterr().err
    assert [path.name for path in (data.parent / "check").iterdir()] == ["mine.txt"]
    assert main([str(data), "--null", "colour", "--output", str(data.parent / "check")]) == 2


def test_the_shipped_example_has_the_files_that_its_command_writes():
    experiment = load_experiment(EXAMPLE)
    assert "prepare tiny --scale 2" in EXAMPLE.read_text()
    sizes = {"train": 2 * TASKS["vqa"].train_size, "val": 2 * VAL_SIZE, "test": 2 * TEST_SIZE}
    for name, task in experiment.tasks.items():
        for split, file in (("train", task.train[0]), ("val", task.val), ("test", task.test)):
            assert Path(str(file)).name == f"{name}_{split}-{sizes[split] // 5}.json"
