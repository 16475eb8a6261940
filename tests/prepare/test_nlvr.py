"""NLVR: hand-made scenes whose answers are known, the rules of the split, bad input, and the published files."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from visatb.commands.prepare import main
from visatb.prepare.nlvr import Example, read_examples, split
from visatb.prepare.nlvr_tasks import ORIGINAL, SQUARE, Thing, colour, counting, grounding, region

RGB = {"Yellow": (255, 255, 0), "Black": (0, 0, 0), "#0099ff": (0, 153, 255)}
NAMES = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}


def thing(kind: str, colour_code: str, x: int, y: int, size: int) -> dict:
    return {"type": kind, "color": colour_code, "x_loc": x, "y_loc": y, "size": size}


def line(number: int, presentation: int, sentence: str, boxes: list[list[dict]], label: str = "true") -> dict:
    return {
        "identifier": f"{number}-{presentation}",
        "directory": str(number % 3),
        "sentence": sentence,
        "label": label,
        "structured_rep": boxes,
    }


def boxes_of(number: int) -> list[list[dict]]:
    """Three boxes that no other number gives."""
    codes = list(RGB)
    return [
        [thing("square", codes[(number + box) % 3], 40, 80 - 21 * floor, 20) for floor in range(1 + (number + box) % 3)]
        + [thing("circle", codes[number % 3], 2 + number, 5, 10)]
        for box in range(3)
    ]


def draw(boxes: list[list[dict]], order: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGBA", (400, 100), (128, 128, 128, 255))
    pen = ImageDraw.Draw(image)
    for slot, box in enumerate(order):
        left = 150 * slot
        pen.rectangle((left, 0, left + 99, 99), fill=(211, 211, 211))
        for value in boxes[box]:
            x, y, side = left + value["x_loc"], value["y_loc"], value["size"]
            pen.rectangle((x, y, x + side - 1, y + side - 1), fill=RGB[value["color"]])
    return image


def publish(folder: Path, lines: list[dict], tar: bool) -> Path:
    """A folder as NLVR's repository holds it."""
    folder.mkdir()
    (folder / "dev.json").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    for entry in lines:
        for picture, order in enumerate(permutations(range(3))):
            file = folder / f"images/{entry['directory']}/dev-{entry['identifier']}-{picture}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(entry["structured_rep"], order).save(file)
    if tar:
        with tarfile.open(folder / "images.tar", "w") as archive:
            archive.add(folder / "images", "images")
            archive.addfile(tarfile.TarInfo("../outside.png"), io.BytesIO())
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [line(number, 0, f"Sentence number {number}.", boxes_of(number)) for number in range(20)]
    return publish(tmp_path_factory.mktemp("nlvr") / "source", lines, tar=True)


def load(folder: Path) -> dict[tuple[str, str], list[dict]]:
    found = {}
    for file in folder.glob("*_*-*.json"):
        task, part, size = re.fullmatch(r"(\w+)_(train|val|test)-(\d+)", file.stem).groups()
        found[task, part] = json.loads(file.read_text())
        assert len(found[task, part]) == int(size)
    return found


@pytest.mark.parametrize("layout", ["original", "square"])
def test_answers_agree_with_the_pictures(source: Path, tmp_path: Path, layout: str) -> None:
    output = tmp_path / "data"
    assert main(["nlvr", "--source", str(source), "--output", str(output), "--layout", layout]) == 0
    tasks = load(output)
    check_boxes(output, tasks)
    parts = {"train": (12, 6), "val": (4, 2), "test": (4, 2)}
    for part, (examples, pictures) in parts.items():
        assert len(tasks["reasoning", part]) == examples * pictures
        assert len(tasks["counting", part]) == examples * pictures


def check_boxes(output: Path, tasks: dict[tuple[str, str], list[dict]]) -> None:
    """A box that is asked for, or asked about, holds the colour that the text names at its middle."""
    codes = {NAMES[code]: np.array(value) for code, value in RGB.items()}
    for task in ("grounding", "region"):
        for entry in tasks[task, "test"] + tasks[task, "val"]:
            text = " ".join(turn["value"] for turn in entry["conversations"])
            image = Image.open(output / entry["image"]).convert("RGB")
            x1, y1, x2, y2 = map(float, re.search(r"\[(.+)\]", text)[1].split(", "))
            middle = ((x1 + x2) / 2 * image.width, (y1 + y2) / 2 * image.height)
            named = codes[re.search(r"(yellow|black|blue)", text)[1]]
            assert np.abs(np.array(image.getpixel(tuple(map(int, middle)))) - named).max() < 20, entry["id"]
            side = {"small": 10, "medium": 20, "large": 30}[re.search(r"(small|medium|large)", text)[1]]
            assert abs((x2 - x1) * image.width - side) <= 0.0101 * image.width  # two decimals
            slot = ("first", "second", "third").index(re.search(r"(first|second|third)", text)[1])
            if image.height == 100:
                assert 150 * slot <= middle[0] <= 150 * slot + 100


def test_folder_of_images_serves_as_well_as_the_archive(source: Path, tmp_path: Path) -> None:
    lines = [json.loads(text) for text in (source / "dev.json").read_text().splitlines()]
    plain = publish(tmp_path / "folder", lines, tar=False)
    for name, folder in (("tar", source), ("plain", plain)):
        assert main(["nlvr", "--source", str(folder), "--output", str(tmp_path / name)]) == 0
    files = sorted(file.relative_to(tmp_path / "tar") for file in (tmp_path / "tar").rglob("*.*"))
    assert len(files) > 60
    for file in files:
        assert (tmp_path / "tar" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    assert not (tmp_path / "outside.png").exists()


def test_what_belongs_together_stays_together() -> None:
    scenes = [boxes_of(number) for number in range(40)]
    lines = [line(number, 0, f"Sentence {number}.", scenes[number]) for number in range(30)]
    lines += [line(number, 1, f"Sentence {number}.", boxes_of(number + 50)) for number in range(5)]  # same number
    lines += [line(60, 0, "sentence 7", boxes_of(100))]  # same text but for its writing
    lines += [line(61, 0, "Another.", [scenes[8][2], scenes[8][0][::-1], scenes[8][1]])]  # same scene, reordered
    examples = [from_line(entry) for entry in lines]
    for seed in range(10):
        parts = split(examples, seed)
        assert sorted(e.identifier for part in parts.values() for e in part) == sorted(e.identifier for e in examples)
        home = {example.identifier: part for part, members in parts.items() for example in members}
        assert all(home[f"{number}-0"] == home[f"{number}-1"] for number in range(5))
        assert home["60-0"] == home["7-0"]
        assert home["61-0"] == home["8-0"]
    assert split(examples, 0) == split(examples, 0) != split(examples, 1)


def from_line(entry: dict) -> Example:
    boxes = tuple(
        [Thing(0, v["type"], NAMES[v["color"]], v["x_loc"], v["y_loc"], v["size"]) for v in box]
        for box in entry["structured_rep"]
    )
    return Example(entry["identifier"], entry["directory"], entry["sentence"], entry["label"], boxes)


TOWER = [Thing(1, "square", "black", 40, 80, 20), Thing(1, "square", "yellow", 40, 59, 20)]
SCENE = [*TOWER, Thing(1, "square", "black", 40, 38, 20), Thing(0, "circle", "blue", 0, 90, 10)]


def test_hand_made_questions() -> None:
    def asked(ask: object, layout: object = ORIGINAL) -> dict[str, str]:
        pairs = {ask(SCENE, Random(seed), layout) for seed in range(400)} - {None}
        assert len({question for question, _ in pairs}) == len(pairs), "a question has one answer"
        return dict(pairs)

    counts = asked(counting)
    assert counts["How many black squares are there?"] == "2"
    assert counts["How many squares are there?"] == "3"
    assert counts["How many blue objects are there?"] == "1"
    assert counts["How many objects are in the second box?"] == "3"
    assert counts["How many objects are in the third box?"] == "0"
    assert asked(colour) == {
        "What colour is the highest square in the second box?": "black",
        "What colour is the lowest square in the second box?": "black",
        "What colour is the circle in the first box?": "blue",
    }, "the middle square is neither the highest nor the lowest"
    assert asked(grounding) == {
        "Where is the medium yellow square in the second box?": "[0.47, 0.59, 0.53, 0.79]",
        "Where is the lowest medium black square in the second box?": "[0.47, 0.80, 0.53, 1.00]",
        "Where is the highest medium black square in the second box?": "[0.47, 0.38, 0.53, 0.58]",
        "Where is the small blue circle in the first box?": "[0.00, 0.90, 0.03, 1.00]",
    }
    assert asked(grounding, SQUARE)["Where is the medium yellow square in the second box?"] == (
        "[0.73, 0.27, 0.82, 0.36]"
    )
    assert asked(region)["What is in the region [0.00, 0.90, 0.03, 1.00]?"] == "a small blue circle in the first box"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "dev.json").unlink(), "dev.json"),
        (lambda folder: (folder / "dev.json").write_text('{"identifier": "1-0"}\n'), "line 1"),
        (lambda folder: (folder / "dev.json").write_text(""), "no examples"),
        (lambda folder: next(folder.glob("images/1/dev-1-0-0.png")).unlink(), "dev-1-0-0.png"),
        (lambda folder: (folder / "images/1/dev-1-0-0.png").write_bytes(b"PNG?"), "dev-1-0-0.png"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "images/1/dev-1-0-0.png"), "9 × 9"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, said: str) -> None:
    lines = [line(number, 0, f"Sentence {number}.", boxes_of(number)) for number in range(6)]
    folder = publish(tmp_path / "source", lines, tar=False)
    damage(folder)
    assert main(["nlvr", "--source", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_may_not_lead_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = line(1, 0, "One.", boxes_of(1)) | {"directory": "../../secret"}
    (tmp_path / "dev.json").write_text(json.dumps(entry))
    assert main(["nlvr", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "line 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def published() -> Path:
    shared = os.environ.get("VISATB_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
    folder = Path(shared) / "nlvr"
    if not (folder / "dev.json").is_file():
        pytest.skip("needs NLVR's dev.json and images.tar in $VISATB_SHARED_DATA/nlvr (lil-lab/nlvr)")
    return folder


def test_published_files(published: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    assert main(["nlvr", "--source", str(published), "--output", str(output), "--layout", "square"]) == 0
    tasks = load(output)
    check_boxes(output, tasks)
    lines = {entry["identifier"]: entry for entry in map(json.loads, (published / "dev.json").open())}
    parts: dict[str, set[str]] = defaultdict(set)
    scenes: dict[str, set[str]] = defaultdict(set)
    for (_, part), entries in tasks.items():
        for entry in entries:
            identifier = re.search(r"\d+-\d+(?=-\d$)", entry["id"])[0]
            parts[part].add(identifier.split("-")[0])
            boxes = [sorted(json.dumps(v, sort_keys=True) for v in box) for box in lines[identifier]["structured_rep"]]
            scenes[part].add(json.dumps(sorted(boxes)))
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not parts[one] & parts[other], "a sentence is in two splits"
        assert not scenes[one] & scenes[other], "a scene is in two splits"
    assert len(set.union(*parts.values())) == len({name.split("-")[0] for name in lines})
    assert len(tasks["reasoning", "train"]) == 6 * 593
    assert {e["conversations"][1]["value"] for e in tasks["reasoning", "test"]} == {"true", "false"}
    assert len(read_examples(published / "dev.json")) == len(lines) == 989
