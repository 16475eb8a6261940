"""The command line that all evaluators share: an answer file in; figures, a score file and per-sample scores out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.answers import IDENTITY, Sample, in_words, read_answers, told
from eval.errors import EvaluationError, bad_input
from eval.metrics import Metric, load_metric
from eval.scores import Evaluation, Scored

logger = logging.getLogger(__name__)

CAPTION_TOKENIZERS = {"whitespace": "cider", "ptb": "cider_ptb"}


def evaluate(
    answers: str | Path,
    metric: str | Sequence[str],
    *,
    task: str | None = None,
    model: str | None = None,
    split: str | None = None,
) -> Evaluation:
    """Score an answer file by the metric registered under that name, or by several (the first feeds the weights).

    An answer that any of the metrics cannot read is malformed. Task, model and split are taken from the file where
    they are not given, and left out where nothing tells them. `log_notes` says what a reader must know of the file.

    Raises:
        EvaluationError: the file is not as it should be.
    """
    path = Path(answers)
    samples = read_answers(path)
    identity = told(path, samples, task=task, model=model, split=split)
    return Evaluation(samples, _score(path, samples, metric), identity)


def _score(path: Path, samples: list[Sample], metric: str | Metric | Sequence[str]) -> Scored:
    metrics = [metric] if isinstance(metric, (str, Metric)) else metric
    try:
        parts = [(load_metric(one) if isinstance(one, str) else one).score(samples) for one in metrics]
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    columns = [column for part in parts for column in part.columns]
    malformed = [any(flags) for flags in zip(*(part.malformed for part in parts), strict=True)]
    return Scored(columns, malformed, list(dict.fromkeys(note for part in parts for note in part.notes)))


def log_notes(path: Path, evaluation: Evaluation) -> None:
    """Warn of what a reader of the values must know of the answer file `path`."""
    for note in evaluation.scored.notes:
        logger.warning("%s: %s", path, note)


def single_reference(path: Path, samples: Sequence[Sample]) -> None:
    """EvaluationError if a record has several references."""
    for sample in samples:
        if len(sample.references) > 1:
            raise EvaluationError(
                f"{path}: record id {sample.id} has several references; score it with caption_list.py"
            )


def evaluator(
    description: str,
    metric: str,
    *,
    tokenizers: dict[str, str] | None = None,
    check: Callable[[Path, Sequence[Sample]], None] | None = None,
) -> Callable[..., int]:
    """An evaluator's command: it takes the words of its command line and returns the exit status (2 for bad input).

    `tokenizers` maps the choices of `--tokenizer` to metrics (the first is the default); `check` may refuse samples.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        """Command line; returns the exit status."""
        logging.basicConfig(format="%(levelname)s: %(message)s")
        arguments = make_parser(description, tokenizers).parse_args(argv)
        chosen = tokenizers[arguments.tokenizer] if tokenizers else metric
        try:
            evaluation = score_answers(arguments, chosen, check)
        except EvaluationError as error:
            return bad_input(error)
        print(summary(evaluation))
        return 0

    return main


def make_parser(description: str, tokenizers: dict[str, str] | None = None) -> argparse.ArgumentParser:
    """The arguments that all evaluators share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-a", "--answers", type=Path, required=True, metavar="F", help="answer file (JSON)")
    parser.add_argument("--output", type=Path, metavar="F", help="write the score file here")
    parser.add_argument("--per_sample", "--per-sample", type=Path, metavar="F", help="write each question's score here")
    parser.add_argument("--task", help="task of a score for a matrix, where neither records nor file name tell it")
    parser.add_argument("--model", help="its model (mini, plus_mini:<task>, …), likewise")
    parser.add_argument("--split", help="its split (train, val, test), likewise")
    if tokenizers:
        parser.add_argument("--tokenizer", choices=list(tokenizers), default=next(iter(tokenizers)))
    return parser


def score_answers(
    arguments: argparse.Namespace,
    metric: str | Metric,
    check: Callable[[Path, Sequence[Sample]], None] | None = None,
) -> Evaluation:
    """Score the answer file that `arguments` name, and write the files that they ask for."""
    path: Path = arguments.answers
    targets = [target for target in (arguments.output, arguments.per_sample) if target]
    if len({target.resolve() for target in [path, *targets]}) <= len(targets):
        raise EvaluationError("the answer file, --output and --per_sample must be different files")
    samples = read_answers(path)
    if check:
        check(path, samples)
    given = {key: getattr(arguments, key) for key in IDENTITY}
    identity = told(path, samples, **given) if targets else {key: value for key, value in given.items() if value}
    evaluation = Evaluation(samples, _score(path, samples, metric), identity)
    log_notes(path, evaluation)
    evaluation.write(arguments.output, arguments.per_sample)
    missing = [key for key in IDENTITY if key not in identity]
    if arguments.output and missing:
        flags = " ".join(f"--{key}" for key in missing)
        logger.warning(
            "%s does not say %s: good to read, not to enter a validation matrix; %s would say it",
            arguments.output,
            in_words(missing),
            flags,
        )
    return evaluation


def summary(evaluation: Evaluation) -> str:
    """The figures in words, one line per metric."""
    content = evaluation.score_file()
    whose = " ".join(evaluation.identity.values())
    counts = f"{content['num_samples']} answers, {content['num_malformed']} malformed"
    lines = [f"{whose}: {counts}" if whose else counts]
    for column in evaluation.scored.columns:
        stderr = column.stderr()
        spread = "" if stderr is None else f" ± {stderr:.4f} (standard error)"
        lines.append(f"{column.label}: {column.mean():.4f}{spread}")
    return "\n".join(lines)
