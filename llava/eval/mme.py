"""MME: two yes/no questions on each image, in fourteen categories.

Files: `MME/MME_Benchmark_release_version/{category}/`, holding images and one text file of two questions for each, or
`images/` and `questions_answers_YN/` with the same. Prompts are those of `MME/llava_mme.jsonl` (LLaVA's eval.zip) where
it is there, else made in its form, in which the short-answer instruction takes the place of "Please answer yes or no.".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import (
    Benchmark,
    Questions,
    Result,
    Score,
    make_record,
    prediction,
    truth_of,
)
from llava.eval.files import MissingDataError, find, find_optional, read_rows

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_IMAGES = (".jpg", ".jpeg", ".png", ".JPG", ".PNG")
_PLACE = "MME/MME_Benchmark_release_version"
_ASKS = "Please answer yes or no."

Question = tuple[str, str, str]
"""Category, name of the image without its suffix, and the question without what asks for yes or no."""


class Mme(Benchmark):
    """A category's score is 100·acc + 100·acc+ (acc+: both questions of an image right); perception is their sum."""

    name = "mme"
    title = "MME"

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """Category by category."""
        root = find(data, _PLACE, what="the release, from MME's authors")
        missing = [name for name in (*PERCEPTION, *COGNITION) if not (root / name).is_dir()]
        if missing:
            raise MissingDataError(f"missing: folders {', '.join(missing)} in {root}")
        path = find_optional(data, "MME/llava_mme.jsonl")
        prompts = {} if path is None else _prompts(path)
        records, asked = [], set()
        for category in (*PERCEPTION, *COGNITION):
            for image, number, text, truth in _category(root, category):
                key = _question(category, image, text)
                if path is not None and key not in prompts:
                    raise DataError(
                        f"{path}: does not ask {key[2]!r} of {image} in {root}; are both the official files?"
                    )
                prompt = prompts.get(key, _prompt(text))
                records.append(make_record(self.name, f"{image}#{number}", prompt, image, truth, category=category))
                asked.add(key)
        for category, image, text in prompts.keys() - asked:
            raise DataError(f"{path}: asks {text!r} of {category}/{image}, which is not in {root}")
        return Questions(records, root)

    def score(self, answers: Sequence[Record]) -> Result:
        """The sums over perception and cognition; 2000 and 800 at most."""
        images: dict[str, dict[str, list[bool]]] = {}
        read = [read_answer(prediction(answer)) for answer in answers]
        for answer, said in zip(answers, read, strict=True):
            right = said == truth_of(answer)
            images.setdefault(answer["category"], {}).setdefault(answer["image"], []).append(right)
        groups = {name: _category_score(list(pairs.values())) for name, pairs in images.items()}
        sums = [
            Score(what, math.fsum(groups[name]["score"] for name in names if name in groups), scale=1.0)
            for what, names in (("perception", PERCEPTION), ("cognition", COGNITION))
        ]
        return Result(sums, read.count(None), groups)


def read_answer(answer: str) -> str | None:
    """`yes` or `no`, by the first four letters; None for neither, which counts as wrong."""
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def _category_score(pairs: Sequence[Sequence[bool]]) -> dict[str, float]:
    count = sum(map(len, pairs))
    accuracy, both = sum(map(sum, pairs)) / count, sum(map(all, pairs)) / len(pairs)
    return {"score": 100 * accuracy + 100 * both, "accuracy": accuracy, "accuracy+": both, "num_samples": count}


def _prompt(text: str) -> str:
    """LLaVA's form; a second blank before what it drops stays, as in its file."""
    return f"{text.removesuffix(_ASKS).removesuffix(' ')}\n{SHORT_ANSWER}"


def _question(category: str, image: str, text: str) -> Question:
    return category, Path(image).stem, text.removesuffix(SHORT_ANSWER).strip().removesuffix(_ASKS).strip()


def _prompts(path: Path) -> dict[Question, str]:
    """LLaVA's prompts by question: they stand in another order, so that only the words tell which is which."""
    rows = read_rows(path, "image", "text", "category")
    return {_question(row["category"], row["image"], row["text"]): row["text"] for row in rows}


def _category(root: Path, category: str) -> Iterator[tuple[str, int, str, str]]:
    """Image path, number of the question, question, truth."""
    folder = root / category
    texts = folder / "questions_answers_YN"
    texts, pictures = (texts, folder / "images") if texts.is_dir() else (folder, folder)
    files = sorted(texts.glob("*.txt"))
    if not files:
        raise MissingDataError(f"missing: text files of questions in {texts}")
    for file in files:
        image = next((p for p in (pictures / f"{file.stem}{suffix}" for suffix in _IMAGES) if p.exists()), None)
        if image is None:
            raise MissingDataError(f"missing: {pictures / file.stem}, .jpg or .png (image of {file})")
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if len(lines) != 2:
            raise DataError(f"{file}: holds {len(lines)} questions, not 2; is it the official file?")
        for number, line in enumerate(lines, 1):
            text, tab, truth = line.rpartition("\t")
            if not tab or truth.strip().lower() not in ("yes", "no"):
                raise DataError(f"{file}, line {number}: not a question, a tab, and Yes or No")
            yield image.relative_to(root).as_posix(), number, text.strip(), truth.strip().lower()
