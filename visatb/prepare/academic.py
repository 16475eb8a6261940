"""`visatb prepare academic`: the paper's Academic Benchmark from the files of its publishers (docs/data.md).

Appendix A (1) to (6) and Table 9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visatb.prepare import refcoco, sharegpt
from visatb.prepare.benchmark import Benchmark
from visatb.prepare.output import Output
from visatb.prepare.qa import GQA, OCRVQA, ChartQA, QuestionSet, VQAv2, write_questions
from visatb.prepare.source import PrepareError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Academic(Benchmark):
    """Eight tasks, 475k training conversations at full size."""

    help = "the paper's Academic Benchmark, from its publishers' files or the paper's annotation files"
    name = "academic"
    tasks = (
        sharegpt.SHAREGPT4V,
        refcoco.CAPTION,
        VQAv2.task,
        GQA.task,
        ChartQA.task,
        OCRVQA.task,
        refcoco.BBOX,
        sharegpt.SHAREGPT,
    )
    decisive = ("seed", "missing", "tasks", "scale", "boxes", "tokenizer")

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        super().arguments(parser)
        parser.add_argument("--tokenizer", help="the base model: ShareGPT is cut at 2,048 of its tokens")
        parser.add_argument("--scale", type=float, default=1.0, help="multiplies the sampled sizes (default 1)")
        parser.add_argument(
            "--boxes",
            choices=("square", "image"),
            default="square",
            help="boxes as fractions of the image padded to a square (default, for LLaVA) or of the image as it is",
        )

    def check(self, args: argparse.Namespace) -> None:
        if sharegpt.SHAREGPT in args.tasks and not args.tokenizer:
            raise PrepareError(
                "ShareGPT is cut at 2,048 tokens: name the base model with --tokenizer, or leave it out with --tasks"
            )
        if not args.scale > 0:
            raise PrepareError(f"--scale must be positive, not {args.scale:g}")

    def files(self, args: argparse.Namespace) -> list[Path]:
        return [file for reader in self._readers(args, args.source).values() for file in reader.files()]

    def make(self, args: argparse.Namespace, output: Output) -> None:
        tokenizer = load_tokenizer(args.tokenizer) if sharegpt.SHAREGPT in args.tasks else None
        for reader in dict.fromkeys(self._readers(args, output.folder).values()):
            if isinstance(reader, QuestionSet):
                write_questions(reader, output, args.scale)
            elif isinstance(reader, refcoco.RefCOCO):
                refcoco.write_refcoco(reader, output, args.tasks)
            elif isinstance(reader, sharegpt.ShareGPT4V):
                sharegpt.write_sharegpt4v(reader, output, args.scale)
            elif tokenizer is not None:
                sharegpt.write_sharegpt(reader, output, tokenizer)

    def _readers(self, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
        """A reader for each task that is asked for; `scratch` takes temporary files."""
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
        return {task: makers[task]() for task in args.tasks}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by folder or name; PrepareError where there is none."""
    from llava.model import tokenizer

    try:
        return tokenizer.load_tokenizer(name)
    except (OSError, ValueError) as error:
        raise PrepareError(f"--tokenizer {name}: {' '.join(str(error).split())[:300]}") from error
