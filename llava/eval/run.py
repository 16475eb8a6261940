"""`visatb zeroshot CHECKPOINT --benchmarks all --data DIR`: answer and score the zero-shot benchmarks.

    visatb zeroshot outputs/final --data playground/data/eval --output results
    visatb zeroshot outputs/final --data playground/data/eval --output results --benchmarks mmvet --judge
    visatb zeroshot --compare results/summary_*.json --baseline EW

DIR holds the benchmarks' official files in the folders that docs/zeroshot.md names (those of LLaVA's evaluation). The
same command goes on where a killed one stopped; under torchrun the questions are shared among the processes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.answers import safe_name
from eval.errors import bad_input
from eval.files import write_bytes
from llava.data.errors import DataError
from llava.data.records import Record
from llava.eval.benchmark import Benchmark, Submission
from llava.eval.files import MissingDataError, read_json
from llava.eval.registry import BENCHMARKS
from llava.eval.submit import as_bytes
from llava.eval.summary import Summary, compare, comparison_table, read_summaries
from llava.infer.answers import write_json

if TYPE_CHECKING:
    from llava.infer.checkpoint import Checkpoint
    from llava.infer.run import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A benchmark whose questions are written out for the inference engine."""

    benchmark: Benchmark
    questions: Path
    image_folder: Path
    answers: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 on bad input."""
    parser = make_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if args.list:
        sys.stdout.write("".join(f"{name:17} {known.title}\n" for name, known in BENCHMARKS.items()))
        return 0
    if not args.compare and (args.checkpoint is None or args.data is None):
        parser.error("name a CHECKPOINT and the benchmarks' --data (or summaries to --compare)")
    if args.max_samples is not None and args.max_samples < 1:
        parser.error(f"--max-samples must be at least 1, not {args.max_samples}")
    try:
        return _compare(args) if args.compare else _evaluate(args)
    except (ValueError, OSError) as error:
        return bad_input(error)


def make_parser() -> argparse.ArgumentParser:
    """The command line; options of several words are known with dashes and with underscores."""
    parser = argparse.ArgumentParser(
        prog="visatb zeroshot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, **options: Any) -> None:
        parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"]), **options)

    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT", help="model to evaluate: a folder, or a Hugging Face name"
    )
    add("benchmarks", nargs="+", default=["all"], metavar="NAME", help="names (see --list), or all (default)")
    add("data", type=Path, metavar="DIR", help="folder of all benchmarks' files (LLaVA: playground/data/eval)")
    add("output", type=Path, metavar="DIR", help="answers, scores, summary (default: outputs/zeroshot)")
    add("skip-missing", action="store_true", help="leave out benchmarks whose files are not there, instead of stopping")
    add("judge", action="store_true", help="score open answers by the judge that JUDGE_MODEL and OPENAI_… name")
    add("max-samples", type=int, metavar="N", help="only the first N questions of each benchmark, for a trial")
    add("max-new-tokens", type=int, metavar="N", help="longest answer in tokens (default: each benchmark's own)")
    add("model-name", metavar="NAME", help="name of the method or model (default: the checkpoint folder's)")
    add("model-base", metavar="DIR", help="base of an adapter, if not where its configuration says")
    add("conv-mode", metavar="NAME", help="conversation template (default: the one saved with the checkpoint)")
    add("batch-size", type=int, metavar="N", help="answers at once (default: as memory allows)")
    add("num-workers", type=int, metavar="N", help="processes that read images ahead (default: by the machine)")
    add("dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto", help="auto: as saved")
    add("device", help="cuda, cuda:1, cpu, … (default: this rank's GPU, else the CPU)")
    add("compare", nargs="+", type=Path, metavar="SUMMARY", help="compare methods: their summaries, one file each")
    add("baseline", default="EW", metavar="NAME", help="method that ΔI_zero%% compares with (default: EW)")
    add("list", action="store_true", help="name the benchmarks")
    return parser


def _compare(args: argparse.Namespace) -> int:
    summaries = read_summaries(args.compare)
    comparison = compare(summaries, args.baseline)
    if args.output:
        write_json(args.output / "comparison.json", comparison)
    sys.stdout.write(comparison_table(comparison))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    # after the arguments, so that --help and a wrong option answer at once
    from llava.infer.checkpoint import Checkpoint
    from llava.infer.run import Worker

    worker = Worker.of_this_process()
    args.output = args.output or Path("outputs/zeroshot")
    chosen = choose(args.benchmarks)
    if args.judge:
        _check_judge(chosen, args.data)
    checkpoint = Checkpoint(args.checkpoint, args.model_base, args.dtype, args.device)
    model = args.model_name or checkpoint.name
    prepared = prepare(chosen, args, model, worker)
    for one in prepared:
        _answer(one, args, checkpoint, model, worker)
    if worker.number:
        return 0
    run = {
        "model_files": checkpoint.identity,
        "template": args.conv_mode,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "max_samples": args.max_samples,
        "max_new_tokens": args.max_new_tokens,
    }
    summary = Summary.open(args.output / f"summary_{safe_name(model)}.json", model, run)
    for one in prepared:
        _score(one, args, summary)
    sys.stdout.write(summary.table())
    return 0


def choose(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names, in the registry's order; DataError for a name that is none."""
    wanted = [part for name in names for part in name.replace(",", " ").split()]
    unknown = [name for name in wanted if name not in BENCHMARKS and name != "all"]
    if unknown:
        raise DataError(f"no benchmark {', '.join(unknown)}; known: all, {', '.join(BENCHMARKS)}")
    return [known for name, known in BENCHMARKS.items() if name in wanted or "all" in wanted]


def prepare(chosen: Sequence[Benchmark], args: argparse.Namespace, model: str, worker: Worker) -> list[Prepared]:
    """Read and check all questions and images of this worker's share before a model is loaded.

    Raises MissingDataError naming all files that are missing, unless benchmarks without files are to be skipped.
    """
    from llava.infer.questions import read_questions

    if not args.data.is_dir():
        raise DataError(f"--data {args.data}: there is no such folder")
    prepared, missing = [], []
    for benchmark in chosen:
        try:
            questions = benchmark.questions(args.data, args.output / "images" / benchmark.name)
        except MissingDataError as error:
            missing.append(f"{benchmark.name}: {error}")
            continue
        records = questions.records[: args.max_samples]
        name = f"{benchmark.name}_test-{len(records)}"
        path = args.output / "questions" / f"{name}.json"
        write_json(path, records)
        read_questions(path, questions.image_folder, None, worker.share)
        answers = args.output / "answers" / f"{name}_{safe_name(model)}.json"
        prepared.append(Prepared(benchmark, path, questions.image_folder, answers))
    if missing and not (args.skip_missing and prepared):
        raise MissingDataError("\n".join([*missing, "see docs/zeroshot.md for where files come from and belong"]))
    for line in missing:
        logger.warning("left out: %s", line)
    return prepared


def _answer(one: Prepared, args: argparse.Namespace, checkpoint: Checkpoint, model: str, worker: Worker) -> None:
    from llava.infer.engine import GenerationSettings
    from llava.infer.run import Job, answer

    settings = GenerationSettings(
        max_new_tokens=args.max_new_tokens or one.benchmark.max_new_tokens,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    answer(
        Job(
            checkpoint=checkpoint,
            question_files=[str(one.questions)],
            answers_folder=str(one.answers.parent),
            image_folder=str(one.image_folder),
            template=args.conv_mode,
            model_name=model,
            worker=worker,
            settings=settings,
        )
    )


def _score(one: Prepared, args: argparse.Namespace, summary: Summary) -> None:
    while not one.answers.exists():  # other processes are still at it; should one fail, torchrun ends this one
        time.sleep(0.2)
    answers: list[Record] = read_json(one.answers)
    benchmark, note = one.benchmark, None
    result = benchmark.score(answers)
    if result is None and benchmark.judge and args.judge:
        from llava.eval.judged import judge

        result = judge(benchmark, one.answers, args.data)
    elif result is None:
        note = "--judge scores it" if benchmark.judge else "its server scores it"
    submission = None if args.max_samples else benchmark.submission(answers, args.data)
    written = None
    if submission is not None:
        written = write_submission(args.output / "submissions" / one.answers.stem, submission)
    summary.add(benchmark, len(answers), result, one.answers, written, note)
    summary.write()


def write_submission(stem: Path, submission: Submission) -> Path:
    """Write the file for a benchmark's server; its path."""
    path = stem.with_name(stem.name + submission.suffix)
    write_bytes(path, as_bytes(submission))
    return path


def _check_judge(chosen: Sequence[Benchmark], data: Path) -> None:
    """Whether there is a judge, before anything takes time."""
    if not any(benchmark.judge for benchmark in chosen):
        return
    from eval.judge_client import JudgeClient, JudgeSettings

    with JudgeClient(JudgeSettings.from_environment()):
        logger.info("judge: %s", JudgeSettings.from_environment().model)


if __name__ == "__main__":
    sys.exit(main())
