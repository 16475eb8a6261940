"""SEED-Bench, its image part (SEED^I): multiple choice.

Files: `seed_bench/SEED-Bench.json`, `seed_bench/SEED-Bench-image/{data_id}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.data.errors import DataError
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
    with_options,
)
from llava.eval.files import check_fields, find, read_json

_LETTERS = "ABCD"


class SeedBench(Benchmark):
    """Accuracy, the answer being the letter and nothing else as LLaVA-v1.5 counts; and by the first letter alone."""

    name = "seed"
    title = "SEED^I"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """The questions on images, in the file's order."""
        path = find(data, "seed_bench/SEED-Bench.json", what="SEED-Bench's questions")
        find(data, "seed_bench/SEED-Bench-image", what="SEED-Bench's images")
        content = read_json(path)
        check_fields(path, None, content, "questions")
        kinds = {number: name for name, number in content.get("question_type", {}).items()}
        records = []
        for index, row in enumerate(content["questions"]):
            check_fields(path, index, row, "question_id", "data_type")
            if row["data_type"] != "image":
                continue
            choices = [f"choice_{letter.lower()}" for letter in _LETTERS]
            check_fields(path, row["question_id"], row, "question", "answer", "data_id", *choices)
            prompt = with_options(row["question"], dict(zip(_LETTERS, (row[name] for name in choices), strict=True)))
            kind = row.get("question_type_id")
            image, category = f"SEED-Bench-image/{row['data_id']}", str(kinds.get(kind, kind))
            name = row["question_id"]
            records.append(make_record(self.name, name, prompt, image, row["answer"], category=category))
        if not records:
            raise DataError(f"{path}: has no question with data_type image")
        return Questions(records, data / "seed_bench")

    def score(self, answers: Sequence[Record]) -> Result:
        """Over all questions and by type; the second value as the paper's script counts, by the first letter alone."""
        values = [float(prediction(answer) == truth_of(answer)) for answer in answers]
        first = [float(prediction(answer)[:1] == truth_of(answer)) for answer in answers]
        other = sum(prediction(answer) not in tuple(_LETTERS) for answer in answers)
        names = [answer["category"] for answer in answers]
        scores = [mean_score("accuracy", values), mean_score("first_letter_accuracy", first)]
        return Result(scores, other, group_means(names, values))

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """The leaderboard's lines, of the image part."""
        return Submission(
            ".jsonl", [{"question_id": str(answer["id"]), "prediction": prediction(answer)} for answer in answers]
        )
