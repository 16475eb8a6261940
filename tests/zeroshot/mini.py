"""All benchmarks in miniature, file by file in the layout in which they are published."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

MME_FOLDERS = {"posters", "celebrity", "scene", "landmark", "artwork"}  # these hold images and questions apart
MME_CATEGORIES = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
MMBENCH_HEADER = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)


def picture(path: Path, seed: int = 0) -> str:
    """A small image at `path`; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (24, 20 + seed % 8, 3), dtype=np.uint8)).save(path)
    return path.name


def dump(path: Path, content) -> Path:
    """JSON, or JSON lines where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in content) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(lines)
    return path


def textvqa(data: Path) -> None:
    folder = data / "textvqa"
    rows = [
        {"image_id": "003a8a", "question_id": 34602, "question": "what is the brand of this camera?"},
        {"image_id": "003a8a", "question_id": 34603, "question": "what colour is it?"},
    ]
    answers = [["dakota"] * 6 + ["dakota digital"] * 3 + ["clos culombu"], ["black"] * 10]
    for row, given in zip(rows, answers, strict=True):
        row["answers"] = given
    dump(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    tokens = [{"image_id": "003a8a", "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use"]}]
    dump(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    picture(folder / "train_images" / "003a8a.jpg")


def pope(data: Path) -> None:
    name = picture(data / "pope" / "val2014" / "COCO_val2014_000000000042.jpg")
    for split, thing in (("random", "dog"), ("popular", "person"), ("adversarial", "cat")):
        rows = [
            {"question_id": number, "image": name, "text": f"Is there a {what} in the image?", "label": label}
            for number, (what, label) in enumerate([("surfboard", "yes"), (thing, "no")], 1)
        ]
        path = data / "pope" / "coco" / f"coco_pope_{split}.json"
        dump(path.with_suffix(".jsonl"), rows).rename(path)  # the published files hold lines in spite of their name


def mme(data: Path) -> None:
    root = data / "MME" / "MME_Benchmark_release_version"
    for seed, category in enumerate(MME_CATEGORIES):
        apart = category in MME_FOLDERS
        images = root / category / ("images" if apart else "")
        texts = root / category / ("questions_answers_YN" if apart else "")
        texts.mkdir(parents=True, exist_ok=True)
        for number in (1, 2):
            picture(images / f"{number:04d}.{'jpg' if apart else 'png'}", seed)
            lines = [f"Is this {word} {category}? Please answer yes or no." for word in ("a", "no")]
            (texts / f"{number:04d}.txt").write_text(f"{lines[0]}\tYes\n{lines[1]}\tNo\n")


def sqa(data: Path) -> None:
    folder = data / "scienceqa"
    problems = {
        "4": {
            "question": "Which figure of speech is used?",
            "choices": ["chiasmus", "apostrophe"],
            "answer": 1,
            "hint": "",
            "image": None,
            "subject": "language science",
        },
        "11": {
            "question": "What is the name of the colony shown?",
            "choices": ["Maryland", "New Hampshire", "Rhode Island", "Vermont"],
            "answer": 1,
            "hint": "",
            "image": "image.png",
            "subject": "social science",
        },
        "12": {
            "question": "Which of these could the test show?",
            "choices": ["how steady it was", "whether it would swing"],
            "answer": 0,
            "hint": "People can use the engineering-design process.",
            "image": "image.png",
            "subject": "natural science",
        },
        "99": {"question": "of the train split", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None},
    }
    dump(folder / "problems.json", problems)
    dump(folder / "pid_splits.json", {"train": ["99"], "test": ["4", "11", "12"]})
    for name in ("11", "12"):
        picture(folder / "images" / "test" / name / "image.png", int(name))


def mmbench_row(index, question, options, answer, hint="", **more):
    seed = index % 1_000_000
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "JPEG")
    row = dict.fromkeys(MMBENCH_HEADER, "")
    row |= {"index": str(index), "question": question, "hint": hint, "answer": answer, "split": "dev"}
    row |= {"category": "object_localization", "image": base64.b64encode(buffer.getvalue()).decode()}
    return row | dict(zip("ABCD", options, strict=False)) | more


def mmbench(data: Path) -> None:
    english = [
        mmbench_row(241, "Who is it?", ["Ann", "Bob", "Cy", "Di"], "B"),
        mmbench_row(1_000_241, "Who is it?", ["Bob", "Cy", "Di", "Ann"], "A", image="241"),
        mmbench_row(252, "Which is right?", ["left\tone", 'the "other"'], "A", hint="Read\nthis.", category="logic"),
    ]
    chinese = [mmbench_row(241, "他是谁？", ["安", "鲍勃"], "B", hint="nan")]
    for name, rows in (("mmbench_dev_20230712", english), ("mmbench_dev_cn_20231003", chinese)):
        path = data / "mmbench" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, MMBENCH_HEADER, delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)


def seed(data: Path) -> None:
    folder = data / "seed_bench"
    shared = {f"choice_{letter}": text for letter, text in zip("abcd", ["One", "Two", "Three", "Four"], strict=True)}
    rows = [
        {"question_id": "101669", "data_id": "454426", "question": "How many towels?", "question_type_id": 5},
        {"question_id": "101670", "data_id": "454427", "question": "What is this?", "question_type_id": 1},
        {"question_id": "700", "data_id": "v.mp4", "question": "What happens?", "question_type_id": 10},
    ]
    rows = [
        row | shared | {"answer": "A", "data_type": "image" if row["question_id"] != "700" else "video"} for row in rows
    ]
    kinds = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    dump(folder / "SEED-Bench.json", {"questions": rows, "question_type": kinds})
    for number in (454426, 454427):
        file = picture(folder / "SEED-Bench-image" / f"{number}.png", number % 7)
        (folder / "SEED-Bench-image" / file).rename(folder / "SEED-Bench-image" / str(number))


def mmvet(data: Path) -> None:
    folder = data / "mm-vet"
    rows = {
        "v1_0": {"question": "What is x?", "answer": "-1 <AND> -5", "capability": ["ocr", "math"]},
        "v1_1": {"question": "Why is it funny?", "answer": "it is upside down", "capability": ["rec"]},
    }
    for name, row in rows.items():
        row["imagename"] = picture(folder / "images" / f"{name}.png")
    dump(folder / "mm-vet.json", rows)


def llava_benches(data: Path) -> None:
    folder = data / "llava-bench-in-the-wild"
    asked = [
        {"question_id": number, "image": "001.jpg", "text": f"What is number {number}?", "category": category}
        for number, category in enumerate(["conv", "detail"])
    ]
    dump(folder / "questions.jsonl", asked)
    dump(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": "A hotel in Hawaii."} for n in (0, 1)])
    dump(folder / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A beach."}])
    picture(folder / "images" / "001.jpg")

    folder = data / "llava-bench-coco"
    name = "000000441147.jpg"
    dump(folder / "qa90_questions.jsonl", [{"question_id": 0, "image": name, "text": "Colour?", "category": "conv"}])
    dump(folder / "qa90_gpt4_answer.jsonl", [{"question_id": 0, "text": "Black and brown.", "category": "conv"}])
    box = {"category": "suitcase", "bbox": [0.1, 0.2, 0.3, 0.4]}
    context = {"image": name, "captions": ["Two suitcases."], "instances": [box]}
    dump(folder / "caps_boxes_coco2014_val_80.jsonl", [context])
    picture(folder / "val2014" / f"COCO_val2014_{name}")


def vqav2(data: Path) -> None:
    folder = data / "vqav2"
    rows = [{"image_id": 262144, "question": f"Is it {n}?", "question_id": 262144000 + n} for n in range(3)]
    dump(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": rows})
    dump(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": rows[1:]})
    picture(folder / "test2015" / "COCO_test2015_000000262144.jpg")


def gqa(data: Path) -> None:
    folder = data / "gqa" / "data"
    rows = {
        "201307251": {
            "imageId": "n161313",
            "question": "Is it overcast?",
            "answer": "no",
            "types": {"structural": "verify"},
        },
        "201640614": {
            "imageId": "n161313",
            "question": "Who is it?",
            "answer": "man",
            "types": {"structural": "query"},
        },
    }
    dump(folder / "testdev_balanced_questions.json", rows)
    picture(folder / "images" / "n161313.jpg")


def vizwiz(data: Path) -> None:
    names = [picture(data / "vizwiz" / "test" / f"VizWiz_test_0000000{n}.jpg", n) for n in (0, 1)]
    dump(data / "vizwiz" / "test.json", [{"image": name, "question": "What is this?"} for name in names])


def official_layout(data: Path) -> Path:
    """All benchmarks under `data`."""
    for make in (textvqa, pope, mme, sqa, mmbench, seed, mmvet, llava_benches, vqav2, gqa, vizwiz):
        make(data)
    return data
