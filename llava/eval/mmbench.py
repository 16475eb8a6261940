"""MMBench and MMBench-CN, dev split: multiple choice in tables that hold the images.

Files: `mmbench/mmbench_dev_20230712.tsv`; `mmbench/mmbench_dev_cn_20231003.tsv` (or in `mmbench_cn/`).
A table repeats each question with its options shifted; the copies' index differs by multiples of a million.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from eval.files import write_bytes
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import (
    OPTION_LETTER,
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
from llava.eval.files import decode_image, find, read_table

_LETTERS = "ABCD"
_COPIES = 1_000_000
_LONGEST_REFERENCE = 64  # a shorter cell of the image column is the index of the row that holds the image
_NOTHING = {"", "NA", "N/A", "n/a", "NULL", "null"}
_MARKS = re.compile(r"[.()\[\],:;!*#{}，。：、（）]")
_ARTICLE = re.compile(r"(?:^|[.!?:\n])\s*A\s+(?!is\b)\w")  # a capital A in front of a word, where a sentence begins
_UNSENT = ("hint", "category", "source", "image", "comment", "l2-category")


class MMBench(Benchmark):
    """Circular accuracy: a question is right if it is right in all its copies, as MMBench's server counts."""

    name = "mmbench"
    title = "MMBench"
    max_new_tokens = 1024
    instruction = OPTION_LETTER
    tables: tuple[str, ...] = ("mmbench/mmbench_dev_20230712.tsv", "mmbench/MMBench_DEV_EN.tsv")

    def questions(self, data: Path, unpacked: Path) -> Questions:
        """Row by row; images go to `unpacked`, named by the row's index."""
        path = find(data, *self.tables, what="MMBench's dev table")
        records = []
        for row in read_table(path, "index", "question", "A", "B", "image"):
            index = _index(path, row["index"])
            options = {letter: row[letter] for letter in _options(row)}
            hint = row.get("hint", "")
            question = row["question"] if _is_nothing(hint) else f"{hint}\n{row['question']}"
            image = _unpack(path, index, row["image"], unpacked)
            sent = {name: text for name, text in row.items() if name not in _UNSENT}
            prompt = with_options(question, options, self.instruction)
            more = {"category": row.get("category", "all"), "options": options, "row": sent}
            records.append(make_record(self.name, index, prompt, image, row.get("answer", ""), **more))
        if not records:
            raise DataError(f"{path}: has no rows")
        return Questions(records, unpacked)

    def score(self, answers: Sequence[Record]) -> Result | None:
        """Circular accuracy, and plain accuracy over the first copies; None where the table does not tell the truth."""
        if not all(truth_of(answer) for answer in answers):
            return None
        letters = [read_choice(prediction(answer), answer["options"]) for answer in answers]
        right = [letter == truth_of(answer) for letter, answer in zip(letters, answers, strict=True)]
        copies: dict[int, list[bool]] = {}
        first: dict[int, str] = {}
        for answer, correct in zip(answers, right, strict=True):
            copies.setdefault(answer["id"] % _COPIES, []).append(correct)
            first.setdefault(answer["id"] % _COPIES, answer["category"])
        circular = [float(all(part)) for part in copies.values()]
        plain = [float(c) for answer, c in zip(answers, right, strict=True) if answer["id"] < _COPIES]
        scores = [mean_score("accuracy", circular), mean_score("plain_accuracy", plain)]
        return Result(scores, letters.count(""), group_means(list(first.values()), circular))

    def submission(self, answers: Sequence[Record], data: Path) -> Submission:
        """A sheet of the table's columns without images, and the predictions after the options."""
        header = list(answers[0]["row"])
        index = header.index("D") + 1 if "D" in header else len(header)
        header.insert(index, "prediction")
        rows = [header]
        for answer in answers:
            row = [_cell(name, answer["row"][name]) for name in answer["row"]]
            row.insert(index, prediction(answer))
            rows.append(row)
        return Submission(".xlsx", rows)


class MMBenchCN(MMBench):
    """The same in Chinese."""

    name = "mmbench_cn"
    title = "MMBench-CN"
    instruction = "请直接回答选项字母。"
    tables = (
        "mmbench/mmbench_dev_cn_20231003.tsv",
        "mmbench_cn/mmbench_dev_cn_20231003.tsv",
        "mmbench/MMBench_DEV_CN.tsv",
    )


def read_choice(answer: str, options: Mapping[str, str]) -> str:
    """The option that an answer names by its letter alone or else by its text; empty if not just one.

    MMBench's own rule before it asks a language model: one letter as a word of its own; else the text of one option, in
    an answer not much longer than the options. In answers of more than three words the rule of 2023 passes over every
    capital `A`, which may be the article; here it passes over one that is, so that "The answer is A." counts as "The
    answer is B." does.
    """
    words = _MARKS.sub(" ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and not (letters == ["A"] and len(words) > 3 and _ARTICLE.search(answer)):
        return letters[0]
    text = answer.lower()
    if len(text) > 2 * sum(len(option) for option in options.values()):
        return ""
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else ""


def _options(row: Mapping[str, str]) -> Iterable[str]:
    for letter in _LETTERS:
        if _is_nothing(row.get(letter, "")):
            return
        yield letter


def _is_nothing(text: str) -> bool:
    """What the table's readers take for an empty cell."""
    return text in _NOTHING or text.lower() in ("nan", "none")


def _index(path: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{path}: {text!r} in column index is no number; is it the official file?") from error


def _unpack(path: Path, index: int, cell: str, folder: Path) -> str:
    """The name of the row's image in `folder`, written there if it is not yet."""
    if len(cell) <= _LONGEST_REFERENCE:
        name = f"{_index(path, cell)}.jpg"
        if not (folder / name).exists():
            raise DataError(f"{path}, row {index}: its image is that of row {cell}, which has none before it")
        return name
    file, content = folder / f"{index}.jpg", decode_image(path, index, cell)
    if not file.exists() or file.stat().st_size != len(content):
        write_bytes(file, content)
    return file.name


def _cell(name: str, text: str) -> str | int:
    return int(text) if name == "index" else text
