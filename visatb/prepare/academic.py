"""`visatb prepare academic`: the paper's Academic Benchmark from the files of its publishers (docs/data.md).

Appendix A (1) to (6) and Table 9. Images stay where they are; `images` in the output links to the source.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visatb.prepare import ready, refcoco, sharegpt
from visatb.prepare.files import stamp
from visatb.prepare.output import Output, experiment_file, link_images
from visatb.prepare.qa import GQA, OCRVQA, ChartQA, QuestionSet, VQAv2, write_questions
from visatb.prepare.source import PrepareError, Source, Summary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
TASKS = (
    sharegpt.SHAREGPT4V,
    refcoco.CAPTION,
    VQAv2.task,
    GQA.task,
    ChartQA.task,
    OCRVQA.task,
    refcoco.BBOX,
    sharegpt.SHAREGPT,
)


class Academic(Source):
    """Eight tasks, 475k training conversations at full size."""

    help = "the paper's Academic Benchmark, from its publishers' files or the paper's annotation files"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        common_arguments(parser, TASKS)
        parser.add_argument("--tokenizer", help="the base model: ShareGPT is cut at 2,048 of its tokens")
        parser.add_argument(
            "--scale", type=float, default=1.0, help="multiplies the sizes that are sampled (default 1)"
        )
        parser.add_argument(
            "--boxes",
            choices=("square", "image"),
            default="square",
            help="boxes as fractions of the image padded to a square (default, for LLaVA) or of the image as it is",
        )

    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        check_source(args, TASKS)
        if ready.wanted(args):
            return ready.settings(args, "academic", VERSION)
        if sharegpt.SHAREGPT in args.tasks and not args.tokenizer:
            raise PrepareError(
                "ShareGPT is cut at 2,048 tokens: name the base model with --tokenizer, or leave it out with --tasks"
            )
        if not args.scale > 0:
            raise PrepareError(f"--scale must be positive, not {args.scale:g}")
        files = [file for reader in self._readers(args, args.source).values() for file in reader.files()]
        chosen = {name: getattr(args, name) for name in ("seed", "scale", "boxes", "tokenizer", "missing", "tasks")}
        return {"source": "academic", "version": VERSION, **chosen, "files": stamp(files)}

    def _readers(self, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
        """A reader for each task that is asked for."""
        source = args.source
        ref = refcoco.RefCOCO(source, args.boxes)
        makers: dict[str, Callable[[], Any]] = {
            sharegpt.SHAREGPT4V: lambda: sharegpt.ShareGPT4V(source),
            refcoco.CAPTION: lambda: ref,
            VQAv2.task: lambda: VQAv2(source, scratch),
            GQA.task: lambda: GQA(source),
            ChartQA.task: lambda: ChartQA(source),
            OCRVQA.task: lambda: OCRVQA(source),
            refcoco.BBOX: lambda: ref,
            sharegpt.SHAREGPT: lambda: sharegpt.ShareGPT(source),
        }
        return {task: makers[task]() for task in TASKS if task in args.tasks}

    def write(self, args: argparse.Namespace, folder: Path) -> list[Summary]:
        link_images(folder, args.source)
        output = Output(folder, args.source, args.seed, args.missing == "drop")
        if ready.wanted(args):
            ready.write(args.source, output, args.tasks, "academic")
        else:
            tokenizer = _tokenizer(args.tokenizer) if sharegpt.SHAREGPT in args.tasks else None
            self._write(args, output, tokenizer)
        return finish("academic", args, output, TASKS)

    def _write(self, args: argparse.Namespace, output: Output, tokenizer: PreTrainedTokenizerBase | None) -> None:
        readers = self._readers(args, output.folder)
        refcoco_tasks = [task for task in (refcoco.CAPTION, refcoco.BBOX) if task in readers]
        for reader in dict.fromkeys(readers.values()):
            if isinstance(reader, QuestionSet):
                write_questions(reader, output, args.scale)
            elif isinstance(reader, refcoco.RefCOCO):
                refcoco.write_refcoco(reader, output, refcoco_tasks)
            elif isinstance(reader, sharegpt.ShareGPT4V):
                sharegpt.write_sharegpt4v(reader, output, args.scale)
            elif tokenizer is not None:
                sharegpt.write_sharegpt(reader, output, tokenizer)


def common_arguments(parser: argparse.ArgumentParser, tasks: Sequence[str]) -> None:
    """What the benchmarks' preparations share."""
    parser.add_argument("--source", type=Path, required=True, help="folder with the publishers' files (docs/data.md)")
    parser.add_argument("--tasks", nargs="+", default=list(tasks), metavar="TASK", help="only these of its tasks")
    parser.add_argument("--seed", type=int, default=0, help="draws other samples and splits (default 0)")
    parser.add_argument(
        "--missing",
        choices=("keep", "drop"),
        default="keep",
        help="records whose images are not there: keep them (default) or leave them out; counted either way",
    )
    parser.add_argument(
        "--ready", action="store_true", help="--source holds annotation files named {task}_{split}-{size}.json"
    )


def check_source(args: argparse.Namespace, tasks: Sequence[str]) -> None:
    """PrepareError for a source that is no folder, or a task that is unknown; tasks into their order."""
    unknown = [task for task in args.tasks if task not in tasks]
    if unknown:
        raise PrepareError(f"unknown task {', '.join(unknown)}; known: {', '.join(tasks)}")
    args.tasks = [task for task in tasks if task in args.tasks]
    if not args.source.is_dir():
        raise PrepareError(f"--source {args.source}: there is no such folder")


def finish(name: str, args: argparse.Namespace, output: Output, tasks: Sequence[str]) -> list[Summary]:
    """The summaries in the order of tasks; the experiment file beside the data where all tasks are there."""
    order = {task: number for number, task in enumerate(tasks)}
    summaries = sorted(output.summaries, key=lambda row: order[row.task])
    if {row.task for row in summaries} == set(tasks):
        experiment_file(name, output.folder, args.output, summaries)
    return summaries


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise PrepareError(f"--tokenizer {name}: {' '.join(str(error).split())[:300]}") from error
