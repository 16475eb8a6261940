"""Stand-ins for training and answering: as fast as can be, and with figures that follow from what was trained on.

A model trained on n samples of a task (and m of all others) answers a share of n / (n + h) + m / 100 of its questions
right, h from 4 to 8 by the task's first letter, and 0.15 less for each seed above 42. Calls are noted in
$STAND_IN_CALLS; $STAND_IN_SECONDS makes each take that long, with progress on the way.
"""

import argparse
import json
import os
import time
from pathlib import Path

from eval.answers import safe_name
from llava.progress import Progress


def note(text: str) -> None:
    calls = os.environ.get("STAND_IN_CALLS")
    if calls:
        with open(calls, "a") as file:
            file.write(text + "\n")


def take_time(progress: Path) -> None:
    """Sleep in ten parts, each noted in a file, so that a second start goes on where the first was killed."""
    seconds = float(os.environ.get("STAND_IN_SECONDS", "0"))
    done = int(progress.read_text() or 0) if progress.exists() else 0
    noted = Progress(10, done)
    for part in range(done, 10):
        time.sleep(seconds / 10)
        progress.write_text(str(part + 1))
        noted.advance()


def train(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--data_path", nargs="+")
    parser.add_argument("--file_tasks", type=json.loads)
    parser.add_argument("--visatb_weights", type=Path)
    parser.add_argument("--weight_method")
    arguments, rest = parser.parse_known_args(words)
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "progress").exists()
    failing = os.environ.get("STAND_IN_FAILS") == folder.name
    if not (resumed or failing):
        (folder / "progress").write_text("0")  # at once, so that a kill soon after is a start like any other
    note(f"train {folder.name}{' resumed' if resumed else ''}")
    if failing:
        print("error: the stand-in was told to fail")
        return 2
    (folder / "checkpoint-5").mkdir(exist_ok=True)
    (folder / "checkpoint-5" / "optimizer.pt").write_text("state")
    take_time(folder / "progress")
    counts: dict[str, int] = {}
    for file in arguments.data_path:
        task = arguments.file_tasks[file]
        counts[task] = counts.get(task, 0) + len(json.loads(Path(file).read_text()))
    weights = json.loads(arguments.visatb_weights.read_text())["weights"] if arguments.visatb_weights else None
    (folder / "model.safetensors").write_text(json.dumps(counts))
    (folder / "arguments.json").write_text(json.dumps(rest))
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    card = {"steps": 3, "hardware": {"machine": "stand-in", "gpus": []}, "weights": weights, "samples": counts}
    (folder / "run_card.json").write_text(json.dumps(card))
    return 0


def seed_of(folder: Path) -> int:
    """The seed that a stand-in was trained with."""
    file = folder / "arguments.json"
    words = json.loads(file.read_text()) if file.exists() else ["--seed", "42"]
    return int(words[words.index("--seed") + 1])


def base(words: list[str]) -> int:
    """A model that has seen nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", type=Path)
    arguments, _ = parser.parse_known_args(words)
    note("base")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "model.safetensors").write_text("{}")
    return 0


def answer(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--model-name")
    parser.add_argument("--answers-folder", type=Path)
    parser.add_argument("--question-file", nargs="+", type=Path)
    arguments, _ = parser.parse_known_args(words)
    note(f"answer {arguments.model_name} {arguments.answers_folder.parent.name}")
    weights = arguments.model_path / "model.safetensors"
    counts = json.loads(weights.read_text()) if arguments.model_path.name != "7b" else {}
    arguments.answers_folder.mkdir(parents=True, exist_ok=True)
    take_time(arguments.answers_folder / "progress")
    for file in arguments.question_file:
        records = json.loads(file.read_text())
        task = records[0]["task"]
        own = counts.get(task, 0)
        share = own / (own + 4 + ord(task[0]) % 5) + (sum(counts.values()) - own) / 100
        share -= 0.15 * (seed_of(arguments.model_path) - 42)
        for place, record in enumerate(records):
            right = (place + 0.5) / len(records) < share
            turn = record["conversations"][1]
            truth = turn["value"] if isinstance(turn["value"], str) else turn["value"][0]
            turn |= {"generative_value": truth if right else "?", "generator": arguments.model_name}
        model = safe_name(arguments.model_name)
        name = f"{file.stem}_{model}.json"
        (arguments.answers_folder / name).write_text(json.dumps(records))
    return 0


def represent(words: list[str]) -> int:
    """Tasks of the same first letter look alike."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--task_names", nargs="+")
    parser.add_argument("--output", type=Path)
    arguments, _ = parser.parse_known_args(words)
    note(f"represent {arguments.model_path.name}")
    assert (arguments.model_path / "model.safetensors").exists()
    letters = sorted({task[0] for task in arguments.task_names})
    vectors = {
        task: [10.0 * (task[0] == letter) for letter in letters] + [len(task) + 0.1 * place]
        for place, task in enumerate(arguments.task_names)
    }
    arguments.output.write_text(json.dumps(vectors))
    return 0


def check(words: list[str]) -> int:
    note("check")
    return 0


def report(words: list[str]) -> int:
    folder = Path(words[0]) / "report"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text("a stand-in")
    return 0


def main(what: str, words: list[str]) -> int:
    made = {"train": train, "answer": answer, "represent": represent, "check": check, "report": report}
    return made[what](words)
