"""GQA, test-dev balanced: short answers, scored here; the file for the official script beside it.

Files: `gqa/data/testdev_balanced_questions.json`, `gqa/data/images/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.data.records import Record
from llava.eval.benchmark import (
    Benchmark,
    Questions,
    Result,
    Submission,
    group_means,
    make_record,
    mean_score,
    prediction,
    truth_of,
)
from llava.eval.files import check_fields, find, read_json


class Gqa(Benchmark):
    """Accuracy: the answer, lower-cased and without full stops at its end, equals the truth."""

    name = "gqa"
    title = "GQA"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the file's order."""
        file = "testdev_balanced_questions.json"
        path = find(data, f"gqa/data/{file}", f"gqa/data/questions1.2/{file}", f"gqa/{file}", what="GQA's questions")
        images = find(data, "gqa/data/images", "gqa/images", what="GQA's images")
        records = []
        for name, row in read_json(path).items():
            check_fields(path, name, row, "imageId", "question", "answer")
            structure = row.get("types", {}).get("structural", "query")
            category = "open" if structure == "query" else "binary"
            prompt, image = f"{row['question']}\n{SHORT_ANSWER}", f"{row['imageId']}.jpg"
            records.append(make_record(self.name, name, prompt, image, row["answer"], category=category))
        return Questions(records, images)

    def score(self, answers: Sequence[Record]) -> Result:
        """Over all questions, the open ones and the binary ones."""
        values = [float(_short(prediction(answer)) == truth_of(answer)) for answer in answers]
        blank = sum(not prediction(answer).strip() for answer in answers)
        names = [answer["category"] for answer in answers]
        return Result([mean_score("accuracy", values)], blank, group_means(names, values))

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """`testdev_balanced_predictions.json` of GQA's evaluation script."""
        return Submission(
            ".json", [{"questionId": answer["id"], "prediction": _short(prediction(answer))} for answer in answers]
        )


def _short(answer: str) -> str:
    return answer.rstrip(".").lower()
