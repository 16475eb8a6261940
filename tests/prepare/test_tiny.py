"""The rendered tasks: the same every time, answers that agree with the pixels, splits without common scenes."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from visatb.commands.prepare import main
from visatb.prepare.scenes import COLOURS, UNIT, Item, draw_chart_items, draw_scene_items, render
from visatb.prepare.tiny import TASKS, Task, caption, chart, draw_record, ground, region, vqa

SCALE = "0.05"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "data"
    assert main(["tiny", "--output", str(folder), "--scale", SCALE]) == 0
    return folder


def records(folder: Path) -> dict[tuple[str, str], list[dict]]:
    found = {}
    for file in folder.glob("*_*-*.json"):
        task, split, size = re.fullmatch(r"(\w+)_(train|val|test)-(\d+)", file.stem).groups()
        content = json.loads(file.read_text())
        assert len(content) == int(size), "the size in the name is the number of records"
        found[task, split] = content
    return found


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def test_files_hold_what_training_reads(prepared: Path) -> None:
    found = records(prepared)
    assert set(found) == {(task, split) for task in TASKS for split in ("train", "val", "test")}
    for (task, _), entries in found.items():
        assert len({entry["id"] for entry in entries}) == len(entries)
        for entry in entries:
            assert entry["task"] == task
            assert (prepared / entry["image"]).is_file()
            human, gpt = entry["conversations"]
            assert human["value"].startswith("<image>\n")
            assert gpt["value"]


def test_same_seed_same_bytes_other_seed_other_data(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "visatb.cli", "prepare", "tiny", "--scale", SCALE, "--output"]
    subprocess.run([*command, str(tmp_path / "again")], check=True, capture_output=True)  # another process's hash seed
    assert digest(tmp_path / "again") == digest(prepared)
    assert main(["tiny", "--output", str(tmp_path / "other"), "--scale", SCALE, "--seed", "1"]) == 0
    assert digest(tmp_path / "other") != digest(prepared)


def test_no_scene_twice(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    drawn = iter([SCENE, SCENE, BARS, SCENE])
    task = Task(2, lambda rng: next(drawn), lambda items, rng: (str(len(items)), "yes"))
    seen: set[tuple[Item, ...]] = set()
    made = [draw_record(tmp_path, "count", "train", number, task, Random(0), seen) for number in range(2)]
    assert [entry["conversations"][0]["value"] for entry in made] == ["<image>\n3", "<image>\n2"]


def nearest_colour(pixel: np.ndarray) -> str | None:
    distances = {name: np.abs(np.array(value) - pixel.astype(int)).max() for name, value in COLOURS.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= 15 else None


def counted_shapes(image: Image.Image) -> int:
    """How many connected patches of strong colour there are, by flood fill."""
    strong = np.ptp(np.asarray(image).astype(int), axis=2) > 60
    count = 0
    while strong.any():
        count += 1
        stack = [tuple(np.argwhere(strong)[0])]
        while stack:
            y, x = stack.pop()
            if 0 <= y < 48 and 0 <= x < 48 and strong[y, x]:
                strong[y, x] = False
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return count


def test_boxes_and_names_agree_with_the_pixels(prepared: Path) -> None:
    for entry in records(prepared)["ground", "train"]:
        question, answer = (turn["value"] for turn in entry["conversations"])
        _, colour, shape = re.search(r"the (\w+) (\w+) (\w+)\?", question).groups()
        x1, y1, x2, y2 = (round(48 * float(value)) for value in re.findall(r"[\d.]+", answer))
        pixels = np.asarray(Image.open(prepared / entry["image"]))[y1:y2, x1:x2]
        inside = [nearest_colour(pixel) for row in pixels for pixel in row]
        share = inside.count(colour) / len(inside)  # a circle fills π/4 of its box, a triangle half
        low, high = {"circle": (0.55, 0.85), "square": (0.95, 1.01), "triangle": (0.3, 0.6)}[shape]
        assert low < share < high, (entry["id"], share)


def test_captions_name_every_shape(prepared: Path) -> None:
    for entry in records(prepared)["caption", "val"]:
        phrases = entry["conversations"][1]["value"].split(" and ")
        assert len(phrases) == counted_shapes(Image.open(prepared / entry["image"]))
        rows = [("top", "middle", "bottom").index(phrase.split()[-2]) for phrase in phrases]
        assert len(rows) == len(phrases)


def test_chart_values_are_bar_heights(prepared: Path) -> None:
    asked = 0
    for entry in records(prepared)["chart", "train"]:
        question, answer = (turn["value"] for turn in entry["conversations"])
        if match := re.search(r"value of the (\w+) bar", question):
            pixels = np.asarray(Image.open(prepared / entry["image"]))
            tall = max(sum(nearest_colour(pixel) == match[1] for pixel in pixels[:, x]) for x in range(48))
            assert tall == UNIT * int(answer)
            asked += 1
    assert asked > 10


def test_scene_rules() -> None:
    rng = Random(3)
    for _ in range(300):
        items = draw_scene_items(rng)
        assert 2 <= len(items) <= 4
        assert len({item.name for item in items}) == len(items), "a name must single a shape out"
        bars = draw_chart_items(rng)
        assert len({bar.colour for bar in bars}) == len(bars) == len({bar.height for bar in bars})
        assert counted_shapes(render(items, rng)) == len(items)


SCENE = [
    Item("circle", "red", 0, 0, 4, 4),
    Item("square", "blue", 9, 5, 2, 2),
    Item("circle", "blue", 1, 9, 2, 2),
]
BARS = [Item("bar", "red", 0, 8, 2, 3), Item("bar", "green", 3, 4, 2, 7)]


def test_hand_made_scene() -> None:
    text = "a large red circle at the top left and a small blue square at the middle right"
    assert caption(SCENE, Random(0))[1] == f"{text} and a small blue circle at the bottom left"
    boxes = {"large red circle": "[0.00, 0.00, 0.33, 0.33]", "small blue square": "[0.75, 0.42, 0.92, 0.58]"}
    boxes["small blue circle"] = "[0.08, 0.75, 0.25, 0.92]"
    for seed in range(20):
        question, answer = ground(SCENE, Random(seed))
        assert boxes[re.fullmatch(r"Where is the (.+)\?", question)[1]] == answer
        question, answer = region(SCENE, Random(seed))
        assert boxes[re.match(r"a (.+) at the", answer)[1]] in question


def test_hand_made_questions() -> None:
    truths = {
        "How many blue shapes are there?": "2",
        "How many red shapes are there?": "1",
        "How many circles are there?": "2",
        "How many triangles are there?": "0",
        "What colour is the large circle?": "red",
        "What shape is red?": "circle",
        "Is there a blue square?": "yes",
        "Is there a red square?": "no",
        "Is the large red circle left of the small blue square?": "yes",
        "Is the small blue square left of the small blue circle?": "no",
        # both middles at x = 2: nothing is asked
        "Is the large red circle left of the small blue circle?": None,
    }
    asked = Counter(vqa(SCENE, Random(seed)) for seed in range(2000))
    questions = dict(asked.keys())
    assert len(questions) == len(asked), "a question has one answer"
    for question, answer in truths.items():
        assert questions.get(question) == answer, question
    assert all("What shape is blue" not in question for question in questions), "two shapes are blue"

    charts = {chart(BARS, Random(seed)) for seed in range(300)}
    assert charts == {
        ("What is the value of the red bar?", "3"),
        ("What is the value of the green bar?", "7"),
        ("What colour is the tallest bar?", "green"),
        ("What colour is the shortest bar?", "red"),
        ("Is the red bar taller than the green bar?", "no"),
        ("Is the green bar taller than the red bar?", "yes"),
    }


def test_kept_replaced_or_refused(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    command = ["tiny", "--output", str(folder), "--scale", "0.01"]
    assert main(command) == 0
    marker = folder / "prepared.json"
    before = marker.stat().st_mtime_ns
    assert main(command) == 0
    assert marker.stat().st_mtime_ns == before, "equal settings are not prepared twice"
    assert main([*command, "--seed", "5"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--seed", "5", "--overwrite"]) == 0
    assert json.loads(marker.read_text())["settings"]["seed"] == 5

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("keep me")
    assert main(["tiny", "--output", str(foreign), "--overwrite"]) == 2
    assert (foreign / "thesis.tex").read_text() == "keep me"
    assert not list(tmp_path.glob(".*")), "no half-made folder stays behind"
