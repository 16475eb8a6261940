"""VQAv2, test-dev: answers for the challenge's server.

Files: `vqav2/test2015/`, and the questions as published, `v2_OpenEnded_mscoco_test-dev2015_questions.json` and
`v2_OpenEnded_mscoco_test2015_questions.json`, or as in LLaVA's eval.zip, `llava_vqav2_mscoco_test….jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.constants import SHORT_ANSWER
from llava.data.records import Record
from llava.eval.benchmark import Benchmark, Questions, Submission, make_record, prediction
from llava.eval.files import check_fields, find, read_json, read_rows
from llava.eval.vqa import normalize


class VQAv2(Benchmark):
    """The server scores: it wants all questions of test2015, those outside test-dev with a blank answer."""

    name = "vqav2"
    title = "VQAv2"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """Those of test-dev."""
        images = find(data, "vqav2/test2015", what="COCO test2015")
        _find_questions(data, "test2015")
        records = []
        for row in _questions(data, "test-dev2015"):
            prompt = f"{row['question']}\n{SHORT_ANSWER}"
            records.append(make_record(self.name, row["question_id"], prompt, row["image"]))
        return Questions(records, images)

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """Normalised answers."""
        given = {answer["id"]: normalize(prediction(answer)) for answer in answers}
        names = [row["question_id"] for row in _questions(data, "test2015")]
        return Submission(".json", [{"question_id": name, "answer": given.get(name, "")} for name in names])


def _find_questions(data: Path, split: str) -> Path:
    published = f"vqav2/v2_OpenEnded_mscoco_{split}_questions.json"
    return find(data, published, f"vqav2/llava_vqav2_mscoco_{split}.jsonl", what=f"questions of VQAv2 {split}")


def _questions(data: Path, split: str) -> list[dict[str, Any]]:
    path = _find_questions(data, split)
    if path.suffix == ".jsonl":
        rows = read_rows(path, "question_id", "image", "text")
        return [{**row, "question": row["text"].removesuffix(f"\n{SHORT_ANSWER}")} for row in rows]
    content = read_json(path)
    check_fields(path, None, content, "questions")
    for index, row in enumerate(content["questions"]):
        check_fields(path, index, row, "question_id", "image_id", "question")
    return [{**row, "image": f"COCO_test2015_{row['image_id']:012d}.jpg"} for row in content["questions"]]
