"""ScienceQA, test split: multiple choice, half of it with an image. LLaVA-v1.5 reports the half with images (SQA^I).

Files: `scienceqa/problems.json`, `scienceqa/pid_splits.json`, `scienceqa/images/test/{id}/image.png`; questions are
those of `llava_test_CQM-A.json` (LLaVA's eval.zip) where it is there, else made in its form. That file holds question
and options only: the instruction comes after them in either case, as LLaVA's `--single-pred-prompt` puts it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import (
    OPTION_LETTER,
    Benchmark,
    Questions,
    Result,
    group_means,
    make_record,
    mean_score,
    prediction,
    truth_of,
    with_options,
)
from llava.eval.files import check_fields, find, find_optional, read_json, read_rows

_LETTERS = "ABCDE"
_SAID = re.compile(r"The answer is ([A-Z]).")  # one more character has to follow, whichever it is


class ScienceQA(Benchmark):
    """Accuracy on questions with an image, and on all."""

    name = "sqa"
    title = "SQA^I"
    max_new_tokens = 1024

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """In the order of the test split."""
        path = find(data, "scienceqa/problems.json", what="ScienceQA's problems")
        splits = find(data, "scienceqa/pid_splits.json", what="ScienceQA's splits")
        images = find(data, "scienceqa/images/test", what="ScienceQA's test images")
        problems, tests = read_json(path), read_json(splits)
        check_fields(splits, None, tests, "test")
        check_fields(path, None, problems, *tests["test"])
        prompts = _prompts(find_optional(data, "scienceqa/llava_test_CQM-A.json"))
        records = []
        for name in tests["test"]:
            problem = problems[name]
            check_fields(path, name, problem, "question", "choices", "answer")
            if not (0 <= problem["answer"] < len(problem["choices"]) <= len(_LETTERS)):
                raise DataError(f"{path}, problem {name}: {len(problem['choices'])} choices, right {problem['answer']}")
            if prompts is not None and name not in prompts:
                raise DataError(f"scienceqa/llava_test_CQM-A.json: has no question {name} of {splits}")
            prompt = _prompt(problem) if prompts is None else prompts[name]
            image = f"{name}/{problem['image']}" if problem.get("image") else None
            truth, category = _LETTERS[problem["answer"]], problem.get("subject", "all")
            records.append(make_record(self.name, name, prompt, image, truth, category=category))
        return Questions(records, images)

    def score(self, answers: Sequence[Record]) -> Result:
        """An answer without a letter in one of the known places is wrong, and malformed."""
        letters = [read_letter(prediction(answer)) for answer in answers]
        values = [float(letter == truth_of(answer)) for letter, answer in zip(letters, answers, strict=True)]
        shown = [value for value, answer in zip(values, answers, strict=True) if "image" in answer]
        names = [answer["category"] for answer in answers]
        scores = [mean_score("image_accuracy", shown), mean_score("accuracy", values)]
        return Result(scores, letters.count(""), group_means(names, values))


def read_letter(answer: str) -> str:
    """The letter that LLaVA's `eval_science_qa.py` reads, empty where it reads none.

    `B`; `B. text`; or the letter of `The answer is B.` where the answer says so exactly once.
    """
    text = answer.strip()
    if text[:1] in tuple(_LETTERS) and (len(text) == 1 or text[1:3] == ". "):
        return text[0]
    said = _SAID.findall(text)
    return said[0] if len(said) == 1 and said[0] in _LETTERS else ""


def _prompt(problem: dict[str, Any]) -> str:
    hint = problem.get("hint", "")
    question = f"Context: {hint}\n{problem['question']}" if hint else problem["question"]
    return with_options(question.lstrip(), dict(zip(_LETTERS, problem["choices"], strict=False)))


def _prompts(path: Path | None) -> dict[str, str] | None:
    """Prompts by question, the image's mark taken out as LLaVA does before it puts it in front."""
    if path is None:
        return None
    prompts = {}
    for row in read_rows(path, "id", "conversations"):
        text = row["conversations"][0]["value"].replace(DEFAULT_IMAGE_TOKEN, "").strip()
        prompts[str(row["id"])] = f"{text.removesuffix(OPTION_LETTER).rstrip()}\n{OPTION_LETTER}"
    return prompts
