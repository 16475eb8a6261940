"""TextVQA, validation set: short answers, with the data set's OCR tokens in the prompt as LLaVA-v1.5 has them.

Files: `textvqa/TextVQA_0.5.1_val.json`, `textvqa/train_images/`, and the prompts: `llava_textvqa_val_v051_ocr.jsonl`
(LLaVA's eval.zip) or, to make the same ones, `TextVQA_Rosetta_OCR_v0.2_val.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.constants import SHORT_ANSWER
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import (
    Benchmark,
    Questions,
    Result,
    make_record,
    mean_score,
    prediction,
    truth_of,
)
from llava.eval.files import check_fields, find, find_optional, read_json, read_rows
from llava.eval.vqa import vqa_accuracy

_OCR = "Reference OCR token: "


class TextVQA(Benchmark):
    """VQA accuracy over ten people's answers."""

    name = "textvqa"
    title = "TextVQA"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the order of the prompts' file."""
        images = find(data, "textvqa/train_images", what="images of TextVQA's train_val_images.zip")
        path = find(data, "textvqa/TextVQA_0.5.1_val.json", what="TextVQA's validation annotations")
        annotations = _data_of(path, "image_id", "question", "answers")
        prompts = find_optional(data, "textvqa/llava_textvqa_val_v051_ocr.jsonl")
        pairs = _from_prompts(prompts, path, annotations) if prompts else _from_tokens(data, annotations)
        return Questions([_record(self.name, prompt, row) for prompt, row in pairs], images)

    def score(self, answers: Sequence[Record]) -> Result:
        """Accuracy; a blank answer is malformed."""
        values = [vqa_accuracy(prediction(answer), truth_of(answer)) for answer in answers]
        blank = sum(not prediction(answer).strip() for answer in answers)
        return Result([mean_score("accuracy", values)], blank)


def _record(task: str, prompt: str, row: dict[str, Any]) -> Record:
    name = row.get("question_id", row["image_id"])
    return make_record(task, name, prompt, f"{row['image_id']}.jpg", [str(answer) for answer in row["answers"]])


def _data_of(path: Path, *fields: str) -> list[dict[str, Any]]:
    content = read_json(path)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: has no list `data`; is it the official file?")
    for index, row in enumerate(rows):
        check_fields(path, index, row, *fields)
        if not row.get("answers", [""]):
            raise DataError(f"{path}, record {index}: has no answers; is it the validation file?")
    return rows


def _from_prompts(prompts: Path, path: Path, annotations: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    known = {(str(row["image_id"]), row["question"].lower()): row for row in annotations}
    for row in read_rows(prompts, "question_id", "text"):
        lines = row["text"].split("\n")
        question = lines[1 if lines[0].startswith(_OCR.strip()) and len(lines) > 1 else 0].lower()
        annotation = known.get((str(row["question_id"]), question))
        if annotation is None:
            raise DataError(f"{prompts}: question {row['question_id']}, {question!r}, is not in {path}")
        yield row["text"], annotation


def _from_tokens(data: Path, annotations: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    path = find(
        data,
        "textvqa/llava_textvqa_val_v051_ocr.jsonl",
        "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json",
        what="LLaVA's prompts, or the OCR tokens to make them",
    )
    tokens = {str(row["image_id"]): row["ocr_tokens"] for row in _data_of(path, "image_id", "ocr_tokens")}
    for row in annotations:
        if str(row["image_id"]) not in tokens:
            raise DataError(f"{path}: has no OCR tokens of image {row['image_id']}")
        found = ", ".join(tokens[str(row["image_id"])])
        yield f"{row['question'].capitalize()}\n{_OCR}{found}\n{SHORT_ANSWER}", row
