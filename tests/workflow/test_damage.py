"""Files of a work folder cut in half, emptied and removed: a run ends in the undisturbed one's figures, or says why."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.errors import EvaluationError
from eval.files import read_json
from tests.workflow import stand_ins
from tests.workflow.in_process import COMMANDS, World
from visatb.experiment.read import load_experiment
from visatb.workdir import outputs
from visatb.workdir.layout import Layout
from visatb.workdir.results import write_results

KINDS = ("cut", "emptied", "removed")
UNFINISHED = "plus_mini:b"  # the model at whose second answer file the half-finished run was stopped
FIGURES = ("matrix.json", "weights.json", "results.json")


def finished(world: World, workdir: Path) -> Path:
    assert world.run(workdir) is None
    return workdir


def half_finished(world: World, workdir: Path) -> Path:
    """Stopped between the two answer files of one model; the jobs behind it are not begun."""
    world.fails = lambda module, words: module == "inference_visatb" and f"{UNFINISHED}" in words
    assert world.run(workdir) is not None
    layout = Layout(workdir)
    folder = layout.answer_folder("val", UNFINISHED)
    words = ["--model-path", str(layout.model(UNFINISHED)), "--model-name", UNFINISHED]
    questions = next((workdir / "data" / "val").glob("a_*.json"))
    stand_ins.answer([*words, "--answers-folder", str(folder), "--question-file", str(questions)])
    world.fails = lambda module, words: False
    return workdir


STATES: dict[str, Callable[[World, Path], Path]] = {"finished": finished, "half finished": half_finished}


def damage(file: Path, kind: str) -> None:
    if kind == "removed":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if kind == "cut" else b"")


def figures(workdir: Path) -> dict[str, object]:
    found = {str(path.relative_to(workdir)): read_json(path) for path in (workdir / "scores").rglob("*.json")}
    cost = read_json(workdir / "cost.json")
    for entry in cost.values():
        entry |= {"train_seconds": 0, "infer_seconds": 0}
    return found | {name: read_json(workdir / name) for name in FIGURES} | {"cost.json": cost}


def faults(world: World, tmp_path: Path, state: str, kind: str, chosen: Callable[[str], bool]) -> list[str]:
    """What went wrong, one line for each file that ended in other figures or in a message that helps nobody."""
    wanted = figures(finished(world, tmp_path / "undisturbed"))
    start = STATES[state](world, tmp_path / "start")
    names = sorted(str(path.relative_to(start)) for path in start.rglob("*") if path.is_file())
    found = []
    assert any(chosen(name) for name in names)
    for name in filter(chosen, names):
        workdir = tmp_path / "work"
        shutil.copytree(start, workdir, symlinks=True)
        damage(workdir / name, kind)
        try:
            message = world.run(workdir)
            if message is None and figures(workdir) != wanted:
                found.append(f"{name}: other figures")
            elif message is not None and not (Path(name).name in message and "run again" in message):
                found.append(f"{name}: {message}")
        except EvaluationError as error:
            found.append(f"{name}: {error}")
        shutil.rmtree(workdir)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
def test_damaged_file_leads_to_no_other_figures(world, tmp_path, state, kind):
    assert faults(world, tmp_path, state, kind, lambda name: True) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data/subsets.json", "emptied"),
        ("models/EW/model.safetensors", "cut"),
        ("answers/val/mini/a_val-12_mini.json", "removed"),
        ("scores/test/a_EW.json", "removed"),
        ("matrix.json", "removed"),
        (".workflow/steps/EW.json", "emptied"),
    ],
)
def test_damaged_file_is_made_again(world, tmp_path, name, kind):
    assert faults(world, tmp_path, "finished", kind, lambda other: other == name) == []


def test_results_have_no_holes(world, tmp_path):
    workdir = finished(world, tmp_path / "work")
    score = Layout(workdir).score("test", "a", "EW")
    for kind in ("cut", "emptied", "removed"):
        damage(score, kind)
        with pytest.raises(EvaluationError, match=r"a_EW\.json.*run again"):
            write_results(load_experiment(world.file), Layout(workdir))


def test_lost_output_is_named_before_it_is_made_again(world, tmp_path, caplog):
    workdir = finished(world, tmp_path / "work")
    (workdir / "weights.json").unlink()
    assert world.run(workdir) is None
    assert f"weights: {workdir / 'weights.json'} is gone; it is made again" in caplog.text
    assert [call.split()[0] for call in world.calls] == ["weighting_visatb"]  # nothing is trained for it


def test_a_lost_report_is_made_again(world, tmp_path):
    page = Layout(finished(world, tmp_path / "work")).report
    page.unlink()
    assert world.run(tmp_path / "work") is None
    assert page.is_file()
    assert [call.split()[0] for call in world.calls] == ["visatb.commands.report"]


def test_weights_that_changed_on_disk_are_not_used(world, tmp_path, monkeypatch):
    """One byte is another, size and time are the same: noticed before the model answers, also in a large file."""

    def train(words):
        code = stand_ins.train(words)
        with open(Path(words[words.index("--output_dir") + 1]) / "model.safetensors", "a") as weights:
            weights.write(" " * (2 << 20))
        return code

    monkeypatch.setitem(COMMANDS, "llava.train.train", train)
    world.fails = lambda module, words: module == "inference_visatb" and "EW" in words
    workdir = tmp_path / "work"
    assert world.run(workdir) is not None
    weights = workdir / "models" / "EW" / "model.safetensors"
    state, content = weights.stat(), weights.read_text()
    weights.write_text(content.replace("16", "17", 1))
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    world.fails = lambda module, words: False
    assert world.run(workdir) is None
    assert weights.read_text() == content
    assert f"{weights} is not as it was written" in (workdir / "logs" / "EW.log").read_text()


@pytest.mark.parametrize("name", ["scores/val/a_mini.json", "answers/test/EW/a_test-10_EW.json", "weights.json"])
def test_flipped_bit_in_a_small_file_is_noticed(world, tmp_path, name):
    """Its size and time are as they were, and an earlier run has remembered its hash by them."""
    file = finished(world, finished(world, tmp_path / "work")) / name
    state, content = file.stat(), file.read_bytes()
    place = max(place for place, byte in enumerate(content) if chr(byte).isdigit())
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert world.run(tmp_path / "work") is None
    assert file.read_bytes() == content


def test_a_large_file_is_read_again_where_its_time_is_another(tmp_path):
    """Of a copied folder, say; where the time is as it was, only who is thorough reads it."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(2 << 20))
    noted = outputs.note(tmp_path, [file])
    written = file.stat().st_mtime_ns
    for content, fault in ((0, None), (1, f"{file} is not as it was written")):
        file.write_bytes(bytes([content]) * (2 << 20))
        for later in (-(10**9), 10**9):
            os.utime(file, ns=(written, written + later))
            assert outputs.damage(tmp_path, noted) == fault
        os.utime(file, ns=(written, written))
        assert outputs.damage(tmp_path, noted) is None
        assert outputs.damage(tmp_path, noted, thorough=True) == fault


def test_unexpected_error_reaches_the_log(world, tmp_path):
    def odd(module, words):
        raise RuntimeError("something\nodd")

    world.fails = odd
    log = world.run(tmp_path / "work")
    assert log.splitlines()[-1].endswith("failed: RuntimeError: something odd")
    assert "in odd\n" in log  # where it was
