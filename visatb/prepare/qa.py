"""Visual question answering in the Academic Benchmark: one way of writing it, one reader per data set.

Training questions of one image become one conversation, the response format standing after its first question, as
LLaVA-v1.5 does; validation and test questions stand alone. Paper, Appendix A (2), (4), (5), and Table 9.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from llava.constants import SHORT_ANSWER
from visatb.prepare.coco import CocoImages
from visatb.prepare.disk import DiskGroups
from visatb.prepare.files import field, find, items, pairs, text, whole
from visatb.prepare.output import Output, count, pick
from visatb.prepare.source import PrepareError, Record

VAL_SIZE = 20_000
OCRVQA_TRAIN_SIZE = 80_000


class Question(NamedTuple):
    """One question on one image; `answer` is empty where the publisher keeps it (a test server's set)."""

    id: str
    image: str
    question: str
    answer: str


class QuestionSet(ABC):
    """A publisher's questions by split. Each method may be called again and yields the same."""

    task: str
    train_size: int | None = None
    val_size: int | None = None
    unanswered_test = False

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read; PrepareError where one is missing."""

    @abstractmethod
    def questions(self, split: str) -> Iterator[Question]:
        """The questions of `train`, `val` or `test`."""


def write_questions(source: QuestionSet, output: Output, scale: float) -> None:
    """Write all splits of a data set; `scale` multiplies the sizes that are sampled to."""
    train = _usable(source, "train", output)
    with DiskGroups(output.folder) as groups:
        groups.extend((question.image, question) for question in train)
        conversations: Iterable[Record] = (_conversation(source.task, values) for _, values in groups)
        if source.train_size is not None:
            chosen = output.draw(len(groups), scaled(source.train_size, scale), f"{source.task} train")
            conversations = pick(conversations, chosen)
        output.write(source.task, "train", conversations)
    for split, size in (("val", source.val_size), ("test", None)):
        questions: Iterable[Question] = _usable(source, split, output)
        if size is not None:
            total = count(_usable(source, split, output))
            questions = pick(questions, output.draw(total, scaled(size, scale), f"{source.task} {split}"))
        output.write(source.task, split, (_single(question) for question in questions))


def scaled(size: int, scale: float) -> int:
    """A sampled size times the scale, at least 1."""
    return max(1, round(size * scale))


def _usable(source: QuestionSet, split: str, output: Output) -> Iterator[Question]:
    """The questions that have an answer (where they should) and, if wanted so, an image: samples come from these."""
    unanswered = split == "test" and source.unanswered_test
    for question in source.questions(split):
        if not question.question or not (question.answer or unanswered):
            continue
        if output.drop_missing and not output.has(question.image):
            continue
        yield question


def _conversation(task: str, values: Iterable[Any]) -> Record:
    questions = [Question(*value) for value in values]
    turns = []
    for number, question in enumerate(questions):
        asked = question.question if number else f"<image>\n{question.question}\n{SHORT_ANSWER}"
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": question.answer}]
    image = questions[0].image
    return {"id": f"{task}-{Path(image).stem}", "image": image, "conversations": turns}


def _single(question: Question) -> Record:
    return {
        "id": question.id,
        "image": question.image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.question}\n{SHORT_ANSWER}"},
            {"from": "gpt", "value": question.answer},
        ],
    }


class VQAv2(QuestionSet):
    """`vqav2/`: the questions and annotations of VQA v2; tested on test-dev, whose answers its server keeps."""

    task = "VQAv2"
    val_size = VAL_SIZE
    unanswered_test = True
    _COCO: ClassVar = {"train": "train2014", "val": "val2014", "test": "test2015"}

    def __init__(self, source: Path, scratch: Path) -> None:
        """`scratch` takes temporary files."""
        self._folder = source / "vqav2"
        self._coco = CocoImages(source)
        self._scratch = scratch

    def _questions(self, split: str) -> Path:
        name = "test-dev2015" if split == "test" else f"{split}2014"
        return find(self._folder, f"v2_OpenEnded_mscoco_{name}_questions.json")

    def _annotations(self, split: str) -> Path:
        return find(self._folder, f"v2_mscoco_{split}2014_annotations.json")

    def files(self) -> list[Path]:
        return [*map(self._questions, ("train", "val", "test")), *map(self._annotations, ("train", "val"))]

    def questions(self, split: str) -> Iterator[Question]:
        file = self._questions(split)
        if split == "test":
            for entry in items(file, "questions.item"):
                yield self._question(entry, "", split, file)
            return
        answers = self._annotations(split)
        with DiskGroups(self._scratch) as groups:  # the two files need not be in one order
            groups.extend((_id(entry, file), entry) for entry in items(file, "questions.item"))
            groups.extend(
                (_id(entry, answers), _answer(entry, answers)) for entry in items(answers, "annotations.item")
            )
            for key, found in groups:
                if len(found) != 2 or not isinstance(found[0], dict) or not isinstance(found[1], str):
                    raise PrepareError(f"{file} and {answers} do not fit together at question_id {int(key)}")
                yield self._question(found[0], found[1], split, file)

    def _question(self, entry: dict[str, Any], answer: str, split: str, file: Path) -> Question:
        image = self._coco.path(field(entry, "image_id", file), self._COCO[split])
        return Question(str(field(entry, "question_id", file)), image, text(field(entry, "question", file)), answer)


def _id(entry: dict[str, Any], file: Path) -> str:
    return f"{int(field(entry, 'question_id', file)):015d}"  # the order of text is that of numbers


def _answer(entry: dict[str, Any], file: Path) -> str:
    return text(field(entry, "multiple_choice_answer", file))


class GQA(QuestionSet):
    """`gqa/`: the balanced questions; tested on testdev."""

    task = "GQA"
    val_size = VAL_SIZE
    _NAMES: ClassVar = {"train": "train", "val": "val", "test": "testdev"}

    def __init__(self, source: Path) -> None:
        self._folder = source / "gqa"

    def _file(self, split: str) -> Path:
        return find(self._folder, f"{self._NAMES[split]}_balanced_questions.json")

    def files(self) -> list[Path]:
        return [self._file(split) for split in self._NAMES]

    def questions(self, split: str) -> Iterator[Question]:
        file = self._file(split)
        for key, entry in pairs(file):
            image = f"gqa/images/{field(entry, 'imageId', file)}.jpg"
            yield Question(key, image, text(field(entry, "question", file)), text(field(entry, "answer", file)))


class ChartQA(QuestionSet):
    """`chartqa/{train,val,test}/`: the questions by people and the machine-made ones, and `png/`."""

    task = "ChartQA"

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = source / "chartqa"

    def _files(self, split: str) -> list[Path]:
        return [find(self._folder, f"{split}/{split}_{kind}.json") for kind in ("human", "augmented")]

    def files(self) -> list[Path]:
        return list(itertools.chain.from_iterable(map(self._files, ("train", "val", "test"))))

    def questions(self, split: str) -> Iterator[Question]:
        for file in self._files(split):
            images = file.parent.relative_to(self._source) / "png"
            for number, entry in enumerate(whole(file)):
                image = (images / field(entry, "imgname", file)).as_posix()
                question, answer = text(field(entry, "query", file)), text(field(entry, "label", file))
                yield Question(f"{file.stem}-{number}", image, question, answer)


class OCRVQA(QuestionSet):
    """`ocr_vqa/dataset.json`: book covers with several questions each; splits 1, 2, 3."""

    task = "OCRVQA"
    train_size = OCRVQA_TRAIN_SIZE
    val_size = VAL_SIZE
    _SPLITS: ClassVar = {"train": 1, "val": 2, "test": 3}

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = source / "ocr_vqa"

    def files(self) -> list[Path]:
        return [find(self._folder, "dataset.json")]

    def questions(self, split: str) -> Iterator[Question]:
        (file,) = self.files()
        for key, book in pairs(file):
            if field(book, "split", file) != self._SPLITS[split]:
                continue
            asked, answers = field(book, "questions", file), field(book, "answers", file)
            if len(asked) != len(answers):
                raise PrepareError(f"{file}, book {key}: {len(asked)} questions, {len(answers)} answers")
            image = self._image(key, text(field(book, "imageURL", file)))
            for number, (question, answer) in enumerate(zip(asked, answers, strict=True)):
                yield Question(f"{key}-{number}", image, text(question), text(answer))

    def _image(self, key: str, url: str) -> str:
        """Kept under the ending it was fetched with; LLaVA's users name them all .jpg."""
        fetched = f"ocr_vqa/images/{key}{Path(url).suffix or '.jpg'}"
        return fetched if (self._source / fetched).is_file() else f"ocr_vqa/images/{key}.jpg"
