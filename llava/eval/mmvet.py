"""MM-Vet: open questions that take several capabilities at once, graded by a language model.

Files: `mm-vet/mm-vet.json`, `mm-vet/images/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.data.records import Record
from llava.eval.benchmark import Benchmark, Questions, Submission, make_record, prediction
from llava.eval.files import check_fields, find, read_json


class MMVet(Benchmark):
    """The judge's mean grade in percent, or the file for the official grader."""

    name = "mmvet"
    title = "MM-Vet"
    max_new_tokens = 1024
    judge = "mmvet"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the file's order; the question alone is the prompt."""
        path = find(data, "mm-vet/mm-vet.json", "mmvet/mm-vet.json", "mmvet/mm-vet/mm-vet.json", what="mm-vet.zip")
        images = find(path.parent, "images", what="images of mm-vet.zip")
        records = []
        for name, row in read_json(path).items():
            check_fields(path, name, row, "imagename", "question", "answer")
            more = {"capability": row.get("capability", [])}
            records.append(make_record(self.name, name, row["question"], row["imagename"], row["answer"], **more))
        return Questions(records, images)

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """Question id → answer, as MM-Vet's online grader takes it."""
        return Submission(".json", {answer["id"]: prediction(answer) for answer in answers})
