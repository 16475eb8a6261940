"""VizWiz-VQA, test set: answers for the challenge's server.

Files: `vizwiz/llava_test.jsonl` (LLaVA's eval.zip) or, to make the same prompts, `vizwiz/test.json`; `vizwiz/test/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.data.records import Record
from llava.eval.benchmark import Benchmark, Questions, Submission, make_record, prediction
from llava.eval.files import find, read_rows
from llava.eval.vqa import normalize

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(Benchmark):
    """The server scores."""

    name = "vizwiz"
    title = "VizWiz"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the file's order; many questions cannot be answered, and the prompt says what to say then."""
        path = find(data, "vizwiz/llava_test.jsonl", "vizwiz/test.json", what="VizWiz's test questions")
        images = find(data, "vizwiz/test", what="VizWiz's test images")
        instruction = f"\n{UNANSWERABLE}\n{SHORT_ANSWER}"
        if path.suffix == ".json":
            rows = read_rows(path, "image", "question")
            pairs = [(row["image"], row["question"].capitalize() + instruction) for row in rows]
        else:
            pairs = [(row["image"], row["text"]) for row in read_rows(path, "image", "text")]
        return Questions([make_record(self.name, image, prompt, image) for image, prompt in pairs], images)

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """Normalised answers by image."""
        rows = [{"image": answer["image"], "answer": normalize(prediction(answer))} for answer in answers]
        return Submission(".json", rows)
