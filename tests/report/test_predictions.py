"""The predictions shown: which questions, which scores, which images."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.report.academic import EXTERNAL, HOSTILE, IMAGES, TASKS, begun
from visatb.report.load import load
from visatb.report.predictions import LONGEST_TEXT, collect


@pytest.fixture(scope="module")
def data(academic: Path) -> dict[str, Any]:
    content, notes = collect(load(academic), 12, 200_000)
    assert notes == []
    return content


def test_same_questions_for_every_model(data: dict[str, Any]) -> None:
    pages = {(page["split"], page["task"]): page for page in data["pages"]}
    assert set(pages) == {("test", t) for t in TASKS if t != EXTERNAL} | {("val", t) for t in TASKS}
    assert [page["split"] for page in data["pages"]][:6] == ["test"] * 6
    for (split, task), page in pages.items():
        methods = {"EW", "TLA", "RLW", "DWA", "IGBv1", "VisATB", f"STL:{task}"}
        expected = methods if split == "test" else {"mini", *(f"plus_mini:{unit}" for unit in TASKS)}
        assert len(page["questions"]) == 12
        assert page["total"] == (400 if split == "test" else 40)
        for question in page["questions"]:
            assert set(question["answers"]) == expected
            assert question["images"]


def test_questions_are_not_chosen_by_their_answers(data: dict[str, Any]) -> None:
    page = next(page for page in data["pages"] if page["task"] == "ChartQA")
    numbers = [int(question["id"].rpartition("-")[2]) for question in page["questions"]]
    assert numbers == sorted(numbers)
    assert numbers[-1] - numbers[0] > 150  # from all over the file, not its beginning


def test_scores_are_the_samples_own(data: dict[str, Any], academic: Path) -> None:
    file = academic / "scores" / "test" / "ChartQA_VisATB.per_sample.json"
    values = {sample["id"]: sample["values"]["em"] for sample in json.loads(file.read_text())["samples"]}
    page = next(page for page in data["pages"] if (page["task"], page["split"]) == ("ChartQA", "test"))
    assert page["metric"] == "EM"
    assert page["bounded"] is True
    shown = {question["id"]: question["answers"]["VisATB"][1] for question in page["questions"]}
    assert shown == {key: values[key] for key in shown}
    truth = {question["answers"]["VisATB"][0] for question in page["questions"]}
    assert truth & {"42", HOSTILE}


def test_images_within_the_budget(data: dict[str, Any]) -> None:
    images = [base64.b64decode(uri.partition("base64,")[2]) for uri in data["images"]]
    assert 20 < len(images) <= IMAGES
    assert sum(map(len, images)) <= 200_000
    for content in images:
        with Image.open(io.BytesIO(content)) as image:
            assert max(image.size) <= 320
            assert image.size[0] / image.size[1] == pytest.approx(4 / 3, rel=0.02)


def test_no_room_for_images(academic: Path) -> None:
    data, notes = collect(load(academic), 2, 100)
    assert data["images"] == []
    assert all(question["images"] == [] for page in data["pages"] for question in page["questions"])
    assert notes == []


def answers(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    begun(folder)
    path = folder / "answers" / "test" / "EW" / "vqa_test-2_EW.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(records))
    data, notes = collect(load(folder), 5, 1_000_000)
    return {"data": data, "notes": notes}


def record(**more: Any) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": ["a", "b"], "generative_value": "c"},
    ]
    return {"id": "1", "task": "vqa", "conversations": turns, **more}


def test_without_scores_and_with_odd_images(tmp_path: Path) -> None:
    Image.new("RGBA", (48, 48), (255, 0, 0, 128)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot more")
    found = answers(
        tmp_path,
        [
            record(image="tiny.png"),
            record(id="2", image="broken.png"),
            record(id="3", image=["tiny.png", "absent.png"]),
            record(id="4"),
        ],
    )
    page = found["data"]["pages"][0]
    assert [len(question["images"]) for question in page["questions"]] == [1, 0, 1, 0]
    assert page["questions"][0]["question"] == "what?"
    assert page["questions"][0]["truths"] == ["a", "b"]
    assert page["questions"][0]["answers"] == {"EW": ["c", None]}
    assert found["notes"] == ["2 images of the predictions were not found or could not be read"]
    with Image.open(io.BytesIO(base64.b64decode(found["data"]["images"][0].partition(",")[2]))) as image:
        assert image.size == (48, 48)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    entry = record()
    entry["conversations"][1]["generative_value"] = "x" * (LONGEST_TEXT * 3)
    said = answers(tmp_path, [entry])["data"]["pages"][0]["questions"][0]["answers"]["EW"][0]
    assert len(said) < LONGEST_TEXT + 10
    assert said.endswith("[…]")


def test_a_broken_answer_file_is_noted(tmp_path: Path) -> None:
    found = answers(tmp_path, [{"id": "1"}])
    assert found["data"]["pages"] == []
    assert "vqa_test-2_EW.json" in found["notes"][0]


def first_pixels(found: dict[str, Any]) -> list[list[int] | None]:
    """Size of each question's first thumbnail, None where it has none."""
    page, shown = found["data"]["pages"][0], []
    for question in page["questions"]:
        if not question["images"]:
            shown.append(None)
            continue
        content = base64.b64decode(found["data"]["images"][question["images"][0]].partition(",")[2])
        with Image.open(io.BytesIO(content)) as image:
            shown.append(list(image.size))
    return shown


def test_thumbnails_stay_inside_the_image_folder(tmp_path: Path) -> None:
    """By path, by absolute path or by link: what lies outside is not shown."""
    work, images = tmp_path / "work", tmp_path / "work" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(images / "in.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "out.png")
    (images / "link.png").symlink_to(tmp_path / "out.png")
    (images / "inner.png").symlink_to(images / "in.png")
    (images / "up").symlink_to(tmp_path)
    Image.new("RGB", (40, 30)).save(work / "beside.png")
    outside = [
        "../../out.png",
        str(tmp_path / "out.png"),
        "link.png",
        "up/out.png",
        "../beside.png",
        "beside.png",
        "a\0b",
    ]
    names = ["in.png", "inner.png", *outside]
    begun(work, image_folder="images")
    path = work / "answers" / "test" / "EW" / "vqa_test-9_EW.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([record(id=str(number), image=name) for number, name in enumerate(names)]))
    data, notes = collect(load(work), 20, 1_000_000)
    assert first_pixels({"data": data}) == [[40, 30], [40, 30]] + [None] * len(outside)
    assert notes == [f"{len(outside)} images of the predictions were not found or could not be read"]


def test_thumbnails_are_upright_and_scaled(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    Image.new("I;16", (30, 30), 256 * 100).save(tmp_path / "deep.png")
    found = answers(tmp_path, [record(image="phone.jpg"), record(id="2", image="deep.png")])
    assert first_pixels(found) == [[20, 40], [30, 30]]
    deep = base64.b64decode(found["data"]["images"][1].partition(",")[2])
    with Image.open(io.BytesIO(deep)) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (100, 100, 100)
