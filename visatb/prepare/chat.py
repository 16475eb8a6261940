"""`visatb prepare chat`: the paper's Chat Benchmark (docs/data.md).

Trained on LLaVA-Instruct's three files, validated on LLaVA-Bench (COCO), tested on LLaVA-Bench (In-the-Wild). Questions
carry what a judge needs: `question_id`, `category`, the reference as their answer, and the image's `context` in words.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visatb.prepare.benchmark import Benchmark
from visatb.prepare.coco import CocoImages
from visatb.prepare.files import field, find, records, text
from visatb.prepare.output import Output
from visatb.prepare.source import PrepareError, Record

TRAIN = {
    "conversation": "conversation_58k.json",
    "detail": "detail_23k.json",
    "complex_reasoning": "complex_reasoning_77k.json",
}
CATEGORIES = {"conv": "conversation", "detail": "detail", "complex": "complex_reasoning"}


class Chat(Benchmark):
    """Three tasks, 158k training conversations at full size."""

    help = "the paper's Chat Benchmark, from LLaVA-Instruct and the two LLaVA-Benches"
    name = "chat"
    tasks = tuple(TRAIN)

    def files(self, args: argparse.Namespace) -> list[Path]:
        train = [_train_file(args.source, task) for task in args.tasks]
        return [*train, *Coco(args.source).files(), *Wild(args.source).files()]

    def make(self, args: argparse.Namespace, output: Output) -> None:
        coco = CocoImages(args.source)
        for task in args.tasks:
            output.write(task, "train", _train(_train_file(args.source, task), coco))
            for split, bench in (("val", Coco(args.source)), ("test", Wild(args.source))):
                output.write(task, split, (r for r in bench.questions() if CATEGORIES[r["category"]] == task))


def _folder(source: Path, *names: str) -> Path:
    """The first of the folders that is there, else the source itself."""
    return next((source / name for name in names if (source / name).is_dir()), source)


def _train_file(source: Path, task: str) -> Path:
    return find(_folder(source, "llava_instruct", "LLaVA-Instruct-150K"), TRAIN[task])


def _train(file: Path, coco: CocoImages) -> Iterator[Record]:
    for number, entry in enumerate(records(file)):
        turns, image = field(entry, "conversations", file), text(entry.get("image"))
        if not isinstance(turns, list) or not image:
            raise PrepareError(f"{file}, record {entry.get('id', number)}: no conversation on an image")
        path = coco.path(int(Path(image).stem), "train2017") if Path(image).stem.isdigit() else image
        yield {"id": str(entry.get("id", number)), "image": path, "conversations": turns}


class Coco:
    """`llava_bench_coco/`: 30 images of COCO val2014, three questions each, GPT-4's answers, captions and boxes."""

    def __init__(self, source: Path) -> None:
        self._folder = _folder(source, "llava_bench_coco")
        self._coco = CocoImages(source)

    def files(self) -> list[Path]:
        names = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
        return [find(self._folder, name) for name in names]

    def questions(self) -> Iterator[Record]:
        """All questions."""
        questions, answers, contexts = self.files()
        context = {field(entry, "image", contexts): _captions_and_boxes(entry) for entry in records(contexts)}
        return _questions(questions, answers, context, lambda name: self._coco.path(int(Path(name).stem), "val2014"))


class Wild:
    """`llava_bench_in_the_wild/`: 60 questions on 24 images of its own, GPT-4's answers, descriptions."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = _folder(source, "llava_bench_in_the_wild", "llava-bench-in-the-wild")

    def files(self) -> list[Path]:
        return [find(self._folder, name) for name in ("questions.jsonl", "answers_gpt4.jsonl", "context.jsonl")]

    def questions(self) -> Iterator[Record]:
        """All questions."""
        questions, answers, contexts = self.files()
        context = {field(entry, "image", contexts): _lines(entry.get("caption")) for entry in records(contexts)}
        images = questions.parent.relative_to(self._source) / "images"
        return _questions(questions, answers, context, lambda name: (images / name).as_posix())


def _questions(questions: Path, answers: Path, context: dict[str, str], path: Any) -> Iterator[Record]:
    references = {
        field(entry, "question_id", answers): text(field(entry, "text", answers)) for entry in records(answers)
    }
    for entry in records(questions):
        number, image = field(entry, "question_id", questions), field(entry, "image", questions)
        category = field(entry, "category", questions)
        if category not in CATEGORIES:
            raise PrepareError(f"{questions}, question {number}: category {category!r}; known: {', '.join(CATEGORIES)}")
        if not references.get(number):
            raise PrepareError(f"{answers} holds no answer to question {number} of {questions}")
        if image not in context:
            raise PrepareError(f"no context for {image}, which question {number} of {questions} is about")
        asked = text(field(entry, "text", questions))
        yield {
            "id": f"{questions.parent.name}-{number}",
            "question_id": number,
            "image": path(image),
            "category": category,
            "context": context[image],
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked}"},
                {"from": "gpt", "value": references[number]},
            ],
        }


def _captions_and_boxes(entry: dict[str, Any]) -> str:
    boxes = [f"{found['category']}: {found['bbox']}" for found in entry.get("instances", [])]
    return "\n".join([_lines(entry.get("captions")), "", *boxes]).strip()


def _lines(value: Any) -> str:
    return "\n".join(map(text, value)) if isinstance(value, list) else text(value)
