"""LLaVA-Bench, in the wild and COCO: open questions, reviewed by a language model beside reference answers.

Files: `llava-bench-in-the-wild/{questions,answers_gpt4,context}.jsonl` and `images/`;
`llava-bench-coco/{qa90_questions,qa90_gpt4_answer,caps_boxes_coco2014_val_80}.jsonl` and `val2014/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.data.errors import DataError
from llava.eval.benchmark import Benchmark, Questions, make_record
from llava.eval.files import find, read_rows

_PREFIX = "COCO_val2014_"


class LlavaBenchWild(Benchmark):
    """The judge's scores of the answers in percent of its scores of the references."""

    name = "llava_bench_wild"
    title = "LLaVA-Bench (wild)"
    max_new_tokens = 1024
    judge = "judge"
    folder = "llava-bench-in-the-wild"
    files: tuple[str, str, str] = ("questions.jsonl", "answers_gpt4.jsonl", "context.jsonl")
    images = "images"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the file's order; the question alone is the prompt."""
        asked, answered, context = (find(data, f"{self.folder}/{name}") for name in self.files)
        references = {row["question_id"]: row["text"] for row in read_rows(answered, "question_id", "text")}
        known = {bare_name(row["image"]) for row in read_rows(context, "image")}
        images = find(data, f"{self.folder}/{self.images}")
        records = []
        for row in read_rows(asked, "question_id", "image", "text", "category"):
            name = row["question_id"]
            if name not in references:
                raise DataError(f"{answered}: has no answer to question {name} of {asked}")
            if bare_name(row["image"]) not in known:
                raise DataError(f"{context}: does not describe image {row['image']} of question {name}")
            image = self.image_name(images, row["image"])
            records.append(make_record(self.name, name, row["text"], image, references[name], category=row["category"]))
        return Questions(records, images)

    def image_name(self, images: Path, name: str) -> str:
        """The file of an image, by its name in the questions."""
        return name

    def judge_options(self, data: Path) -> dict[str, Any]:
        """What the judge is told of the images."""
        return {"context": data / self.folder / self.files[2]}


class LlavaBenchCoco(LlavaBenchWild):
    """The 90 questions on 30 images of COCO val2014 (validation set of the Chat benchmark)."""

    name = "llava_bench_coco"
    title = "LLaVA-Bench (COCO)"
    folder = "llava-bench-coco"
    files = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    images = "val2014"

    def image_name(self, images: Path, name: str) -> str:
        """LLaVA's questions leave COCO's prefix out, others name the files with it; the folder may hold either."""
        bare = bare_name(name)
        return bare if (images / bare).exists() else f"{_PREFIX}{bare}"


def bare_name(image: str) -> str:
    """An image's name without folders and without COCO's prefix."""
    return Path(image).name.removeprefix(_PREFIX)
