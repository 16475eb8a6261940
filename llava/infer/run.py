"""Question files in, answer files out: what `inference_visatb.py` does."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.answers import safe_name
from eval.files import digest
from eval.losses import loss_text
from llava.data.errors import BadSampleError, DataError
from llava.data.images import stamp
from llava.data.template import check_template
from llava.infer.answers import AnswerFile
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator, RequestError
from llava.infer.prompts import Prompt, PromptMaker
from llava.infer.questions import QuestionFile, explain, read_questions
from llava.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """Which share of every question file this process answers: every `count`-th question from `number` on."""

    number: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls, chunk: int = 0, num_chunks: int = 1) -> Worker:
        """The share of this rank (torchrun sets RANK and WORLD_SIZE) of chunk `chunk` of `num_chunks`."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(chunk * ranks + int(os.environ.get("RANK", "0")), num_chunks * ranks)

    @property
    def share(self) -> slice:
        """Its indices in a file."""
        return slice(self.number, None, self.count)


@dataclass(frozen=True)
class Job:
    """What to answer, with what, and where to."""

    checkpoint: Checkpoint
    question_files: Sequence[str]
    answers_folder: str
    image_folder: str | None = None
    template: str | None = None
    model_name: str | None = None
    max_samples: int | None = None
    worker: Worker = field(default_factory=Worker)
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    truth_loss: bool = False
    """In place of an answer, the loss of the answer that the record holds (`eval.losses`)."""

    @property
    def generator_name(self) -> str:
        """The name that answers carry."""
        return self.model_name or self.checkpoint.name

    def key(self, questions: QuestionFile) -> dict[str, Any]:
        """What decides the answers to a question file, as the file's key."""
        settings: dict[str, Any] = {"truth_loss": True}
        if not self.truth_loss:
            settings = asdict(self.settings)
            for name in ("batch_size", "num_workers", *(() if self.settings.temperature else ("seed", "top_p"))):
                del settings[name]
        reading = self.checkpoint.tokenizer_reading
        return {
            "generator": self.generator_name,
            "model_files": self.checkpoint.identity,
            **({} if reading is None else {"tokenizer": reading}),
            "questions": digest(questions.records),
            "images": digest([stamp(None, str(path)) for request in questions.requests for path in request.images]),
            "template": self.template,
            "dtype": str(self.checkpoint.dtype).removeprefix("torch."),
            **settings,
        }


@dataclass(frozen=True)
class _Open:
    """A question file that is not finished, and what of this worker's share is still to be answered."""

    questions: QuestionFile
    answers: AnswerFile
    left: list[int]


def answer(job: Job) -> list[Path]:
    """Answer this worker's share of all question files; the paths of all answer files.

    An answer file is there when all workers have done their shares. Raises DataError for bad input, all of it before
    the model is loaded as far as it can be seen by then, and ValueError for a checkpoint that cannot be loaded.
    """
    paths = _answer_paths(job)
    files = [read_questions(path, job.image_folder, job.max_samples, job.worker.share) for path in job.question_files]
    opened = [_look_up(job, questions, path) for questions, path in zip(files, paths, strict=True)]
    waiting = [one for one in opened if one is not None]
    prompts = _prompts(job, waiting) if any(one.left for one in waiting) else [[] for _ in waiting]
    total = sum(map(len, prompts))
    if total:
        _generate(job, waiting, prompts, total)
    for one in waiting:
        _finish(job, one)
    return paths


def _answer_paths(job: Job) -> list[Path]:
    stems = [Path(path).stem for path in job.question_files]
    for stem, times in Counter(stems).items():
        if times > 1:
            raise DataError(f"{times} question files are named {stem}, and so would be their answers; rename them")
    model = safe_name(job.generator_name)
    return [Path(job.answers_folder) / f"{stem}_{model}.json" for stem in stems]


def _look_up(job: Job, questions: QuestionFile, path: Path) -> _Open | None:
    """What is left to do for a question file, None if it is finished."""
    ids = [questions.question_id(index) for index in range(len(questions.records))]
    answers = AnswerFile(path, job.key(questions), ids)
    if answers.is_finished():
        logger.info("%s is complete already: reused", path)
        return None
    done = answers.answers()
    share = range(len(ids))[job.worker.share]
    left = [index for index in share if index not in done]
    if len(left) < len(share):
        logger.info("%s: %d of %d answers are there already", path, len(share) - len(left), len(share))
    return _Open(questions, answers, left)


def _prompts(job: Job, files: Sequence[_Open]) -> list[list[Prompt]]:
    """The prompts left to answer of each file; DataError for one that the model cannot take."""
    processor = job.checkpoint.processor
    template = job.template or processor.default_template
    check_template(template, processor.tokenizer)
    maker = PromptMaker(processor, template, job.checkpoint.context_length)
    prompts: list[list[Prompt]] = []
    for file in files:
        prompts.append([])
        for index in file.left:
            try:
                request = file.questions.requests[index]
                truth = file.questions.truth(index) if job.truth_loss else None
                prompts[-1].append(maker.prompt(request) if truth is None else maker.answered_prompt(request, truth))
            except BadSampleError as error:
                raise DataError(explain(file.questions.name(index), error)) from error
    return prompts


def _generate(job: Job, files: Sequence[_Open], prompts: Sequence[list[Prompt]], total: int) -> None:
    generator = Generator(job.checkpoint.model, job.checkpoint.processor, job.template, job.settings)
    quiet = job.worker.number != 0
    progress = Progress(total)
    with tqdm(total=total, unit="answer", smoothing=0.1, disable=quiet, dynamic_ncols=True) as bar:
        for file, of_file in zip(files, prompts, strict=True):
            if not of_file:
                continue
            bar.set_description(file.questions.path.stem)
            with file.answers.journal(job.worker.number, job.worker.count) as journal:
                try:
                    for batch in _batches(generator, of_file, job.truth_loss):
                        journal.add(batch)
                        bar.update(len(batch))
                        progress.advance(len(batch))
                except RequestError as error:
                    raise DataError(explain(file.questions.name(error.request_id), error.error)) from error
            _finish(job, file)


def _batches(generator: Generator, prompts: Sequence[Prompt], truth_loss: bool) -> Iterator[Sequence[tuple[Any, str]]]:
    """`(index, text)` of every prompt, batch by batch: the model's answer, or the loss of the record's."""
    if not truth_loss:
        yield from generator.generate_batches(prompts)
        return
    for batch in generator.losses(prompts):
        yield [(index, loss_text(*loss)) for index, loss in batch]


def _finish(job: Job, file: _Open) -> None:
    """Write the answer file if no worker has anything left to answer."""
    if file.answers.is_finished():
        return
    done = file.answers.answers()
    if len(done) == len(file.questions.records):
        texts = [done[index] for index in range(len(done))]
        file.answers.finish(file.questions.answered(texts, job.generator_name))
    else:
        logger.info("%s: this share is done; the file appears when all %d are", file.answers.path, job.worker.count)
