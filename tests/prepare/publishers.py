"""Miniature folders in the formats of the data sets' publishers. Every figure that tests count on is drawn here."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(50)]


def put(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def put_lines(path: Path, entries: list[Any]) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def picture(path: Path, size: tuple[int, int] = (28, 28), shade: int = 128) -> Path:
    """Write a grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def picture_bytes(shade: int, kind: str = "PNG") -> bytes:
    """A grey picture as a file's content."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(buffer, kind)
    return buffer.getvalue()


def word_tokenizer(folder: Path) -> Path:
    """A tokenizer whose tokens are the words between white space."""
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, **{word: n for n, word in enumerate(WORDS, start=1)}}, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


def turn(speaker: str, value: str) -> dict[str, str]:
    """A turn as ShareGPT and LLaVA write it."""
    return {"from": speaker, "value": value}


def sharegpt(source: Path) -> None:
    """Two files: 4 good conversations among 7 bad ones."""
    words = " ".join(WORDS)
    good = [
        {"id": "plain", "conversations": [turn("human", "hello"), turn("gpt", "good day")]},
        {
            "id": "led",
            "conversations": [turn("gpt", "w1"), turn("human", "first"), turn("gpt", "w2"), turn("human", "?")],
        },
        # rounds of 502 words and 4 for the speakers and marks: 4 fit into 2,048, the fifth does not
        {"id": "long", "conversations": [turn("human", "w1 w2"), turn("gpt", " ".join([words] * 10))] * 6},
        {"id": "one", "conversations": [turn("human", "go"), turn("gpt", " ".join([words] * 60))]},
    ]
    bad = [
        {"id": "empty", "conversations": []},
        {"id": "alone", "conversations": [turn("human", "anyone?")]},
        {"id": "twice", "conversations": [turn("human", "a"), turn("human", "b"), turn("gpt", "c")]},
        {"id": "blank", "conversations": [turn("human", "a b"), turn("gpt", "  ")]},
        {"id": "service", "conversations": [turn("human", "who are you"), turn("gpt", "I am ChatGPT")]},
        {"id": "again", "conversations": [turn("human", "hello"), turn("gpt", "good day")]},
        {"id": "mark", "conversations": [turn("human", "<image> what"), turn("gpt", "no")]},
    ]
    put(source / "sharegpt/part1.json", good[:2] + bad[:4])
    put(source / "sharegpt/part2.json", good[2:] + bad[4:])


def sharegpt4v(source: Path, number: int = 30) -> None:
    """One caption per picture; the last picture is missing."""
    entries = []
    for n in range(number):
        image = f"coco/train2017/{n + 900:012d}.jpg"
        if n < number - 1:
            picture(source / image, shade=n)
        turns = [turn("human", "<image>\nWhat is it?"), turn("gpt", f"A scene {n} of many words.")]
        entries.append({"id": f"{n:012d}", "image": image, "conversations": turns})
    put(source / "sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json", entries)


REFCOCO_IMAGES = {1: (640, 480), 2: (300, 400), 3: (200, 200), 4: (640, 640)}


def refcoco(source: Path) -> list[dict[str, Any]]:
    """Image 1: 8 regions of 3 expressions (24 turns); 2: 3 of 3 (9 turns); 3 is val, 4 is testB; one is in testA."""
    refs: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(image: int, split: str, expressions: int) -> None:
        number = len(refs)
        box = [10.0 + number, 20.0, 50.0, 30.0]
        annotations.append({"id": 1000 + number, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0})
        refs.append(
            {
                "ref_id": number,
                "ann_id": 1000 + number,
                "image_id": image,
                "split": split,
                "category_id": 1,
                "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
                "sent_ids": list(range(expressions)),
                "sentences": [
                    {"sent_id": n, "sent": f"thing {number} named {n}", "raw": "Thing", "tokens": ["thing"]}
                    for n in range(expressions)
                ],
            }
        )

    for image, split, regions in ((1, "train", 8), (2, "train", 3), (3, "val", 2), (4, "testB", 2), (4, "testA", 1)):
        for _ in range(regions):
            add(image, split, 3)
    folder = source / "refcoco"
    folder.mkdir(parents=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    images = [{"id": i, "width": w, "height": h, "file_name": f"{i}.jpg"} for i, (w, h) in REFCOCO_IMAGES.items()]
    put(folder / "instances.json", {"info": {}, "images": images, "annotations": annotations, "categories": []})
    for image, size in REFCOCO_IMAGES.items():
        picture(source / f"coco/train2014/COCO_train2014_{image:012d}.jpg", size)
    return refs


def vqav2(source: Path) -> None:
    """Train: 5 pictures of 4 questions, annotations in another order; val: 3 of 4; test-dev: 6 without answers."""
    for split, images, each in (
        ("train", range(101, 106), 4),
        ("val", range(201, 204), 4),
        ("test-dev", (301, 302), 3),
    ):
        year, folder = ("2015", "test2015") if split == "test-dev" else ("2014", f"{split}2014")
        questions, annotations = [], []
        for image in images:
            picture(source / f"coco/{folder}/COCO_{folder}_{image:012d}.jpg", shade=image % 256)
            for n in range(each):
                name = image * 1000 + n
                questions.append({"question_id": name, "image_id": image, "question": f"What is {n}?"})
                answers = [{"answer": "no", "answer_id": k} for k in range(10)]
                annotation = {"question_id": name, "image_id": image, "multiple_choice_answer": f"answer {name}"}
                annotations.append({**annotation, "answers": answers, "question_type": "what"})
        head = {"info": {}, "license": {}, "data_type": "mscoco"}
        put(source / f"vqav2/v2_OpenEnded_mscoco_{split}{year}_questions.json", {**head, "questions": questions})
        if split != "test-dev":
            put(
                source / f"vqav2/v2_mscoco_{split}{year}_annotations.json",
                {**head, "annotations": annotations[::-1]},
            )


def gqa(source: Path) -> None:
    """Train: 4 pictures of 3 questions, mixed; val: 10 questions; testdev: 5."""

    def entry(n: int, image: str) -> dict[str, Any]:
        return {"imageId": image, "question": f"Is it {n}?", "answer": "yes", "isBalanced": True, "semantic": []}

    train = {f"1{n:03d}": entry(n, f"g{n % 4}") for n in range(12)}
    put(source / "gqa/train_balanced_questions.json", train)
    put(source / "gqa/val_balanced_questions.json", {f"2{n:03d}": entry(n, "g8") for n in range(10)})
    put(source / "gqa/testdev_balanced_questions.json", {f"3{n:03d}": entry(n, "g9") for n in range(5)})
    for name in ("g0", "g1", "g2", "g3", "g8", "g9"):
        picture(source / f"gqa/images/{name}.jpg")


def chartqa(source: Path) -> None:
    """Train: 2 human questions on c0, 3 machine-made on c0 and c1; val 2, test 4. As unpacked, one folder down."""
    for split, human, augmented in (
        ("train", ["c0", "c0"], ["c0", "c1", "c1"]),
        ("val", ["v"], ["v"]),
        ("test", ["t"] * 2, ["t"] * 2),
    ):
        folder = source / "chartqa/ChartQA Dataset" / split
        for kind, names in (("human", human), ("augmented", augmented)):
            entries = [
                {"imgname": f"{n}.png", "query": f"{kind} {k}?", "label": str(k + 0.5)} for k, n in enumerate(names)
            ]
            put(folder / f"{split}_{kind}.json", entries)
        for name in {*human, *augmented}:
            picture(folder / f"png/{name}.png")


def ocrvqa(source: Path, train: int = 20) -> None:
    """Train: books of 2 questions; val: 4 of 2; test: 3 of 2. Covers end in .gif at the source, one is fetched so."""
    books = {}
    for n, split in enumerate([1] * train + [2] * 4 + [3] * 3):
        key = f"00{n:05d}"
        books[key] = {
            "imageURL": f"http://books.example/{key}.gif",
            "questions": ["Who wrote this book?", "What is the title?"],
            "answers": [f"Author {n}", f"Title {n}"],
            "title": f"Title {n}",
            "authorName": f"Author {n}",
            "genre": "Science",
            "split": split,
        }
        picture(source / f"ocr_vqa/images/{key}.{'gif' if n == 0 else 'jpg'}")
    put(source / "ocr_vqa/dataset.json", books)


def academic(source: Path) -> Path:
    """Everything of the Academic Benchmark."""
    sharegpt(source)
    sharegpt4v(source)
    refcoco(source)
    vqav2(source)
    gqa(source)
    chartqa(source)
    ocrvqa(source)
    return source


def m3it_entries(name: str, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Records as M³IT's JSON lines hold them; two records share a picture."""
    for n in range(number):
        shade = (hash_of(name + split) + n // 2) % 256
        yield {
            "instruction": f"Look at the picture for {name}.",
            "inputs": f"What is {n}?" if n % 2 else "",
            "image_base64_str": [base64.b64encode(picture_bytes(shade)).decode()],
            "outputs": f"It is {n} of {split}.",
        }


def hash_of(name: str) -> int:
    """A number that is the same in every process."""
    return sum(name.encode())


def m3it(source: Path, tasks: dict[str, str]) -> Path:
    """M³IT's folders as `{folder: kind}`: two files of training (12 and 3), validation (7), test (4) for some kinds."""
    for place, (name, kind) in enumerate(tasks.items()):
        folder = source / f"data/{('captioning', 'vqa')[place % 2]}/{name}"
        splits = {"train_0": 12, "train_1": 3, "validation": 7} | ({"test": 4} if "tested" in kind else {})
        for split, number in splits.items():
            entries = list(m3it_entries(name, split, number))
            if "parquet" in kind:
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(entries), folder / f"{split}-00000-of-00001.parquet")
            else:
                put_lines(folder / f"{split}.jsonl", entries)
    return source


def chat(source: Path) -> Path:
    """LLaVA-Instruct (4, 3 and 2 conversations), LLaVA-Bench (COCO) with 2 images, In-the-Wild with 3 questions."""
    sets = (("conversation_58k", 4, 3), ("detail_23k", 3, 1), ("complex_reasoning_77k", 2, 1))
    for name, number, rounds in sets:
        entries = []
        for n in range(number):
            picture(source / f"coco/train2017/{n + 1:012d}.jpg")
            turns = [turn("human", "What?\n<image>"), turn("gpt", f"{name} {n}")]
            turns += [turn("human", "And?"), turn("gpt", "More.")] * (rounds - 1)
            entries.append({"id": f"{n + 1:012d}", "image": f"{n + 1:012d}.jpg", "conversations": turns})
        put(source / f"llava_instruct/{name}.json", entries)
    bench_coco(source)
    wild = source / "llava-bench-in-the-wild"
    kinds = ("conv", "detail", "complex")
    put_lines(
        wild / "questions.jsonl",
        [
            {"question_id": n, "image": "001.jpg", "text": f"Wild {n}?", "category": kind}
            for n, kind in enumerate(kinds)
        ],
    )
    put_lines(
        wild / "answers_gpt4.jsonl", [{"question_id": n, "text": f"Tame {n}.", "answer_id": "x"} for n in range(3)]
    )
    put_lines(wild / "context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A wild view."}])
    picture(wild / "images/001.jpg")
    return source


def bench_coco(source: Path) -> None:
    """LLaVA-Bench (COCO) in miniature."""
    folder = source / "llava_bench_coco"
    questions, answers, contexts = [], [], []
    for n in range(6):
        kind = ("conv", "detail", "complex")[n % 3]
        image = f"{500 + n // 3:012d}.jpg"
        questions.append({"question_id": n, "image": image, "text": f"Question {n}?", "category": kind})
        answers.append({"question_id": n, "text": f"Answer {n}.", "category": kind})
    for n in (500, 501):
        picture(source / f"coco/val2014/COCO_val2014_{n:012d}.jpg")
        instances = [{"category": "cup", "bbox": [0.1, 0.2, 0.3, 0.4]}]
        contexts.append(
            {"id": f"{n:012d}", "image": f"{n:012d}.jpg", "captions": ["A cup.", "Tea."], "instances": instances}
        )
    put_lines(folder / "qa90_questions.jsonl", questions)
    put_lines(folder / "qa90_gpt4_answer.jsonl", answers[::-1])
    put_lines(folder / "caps_boxes_coco2014_val_80.jsonl", contexts)
