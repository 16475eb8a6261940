"""How a model represents tasks: the mean of the states in which it begins its answers to a task's questions.

    python -m llava.infer.represent --model-path CHECKPOINT --image-folder IMAGES \\
        --question-file caption_val-200.json vqa_val-200.json --task_names caption vqa --output representations.json

The output is `{task: [float, …]}`, the last layer's states behind the last token of a prompt, before any answer is
written: one number per hidden dimension. Questions are taken evenly from each file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval.errors import bad_input
from llava.data.errors import BadSampleError, DataError

if TYPE_CHECKING:
    from llava.infer.engine import Generator
    from llava.infer.prompts import Prompt
    from llava.infer.questions import QuestionFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="llava.infer.represent", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--question-file", required=True, nargs="+", metavar="FILE")
    parser.add_argument("--task_names", required=True, nargs="+", metavar="TASK", help="a name for each question file")
    parser.add_argument("--image-folder")
    parser.add_argument("--conv-mode", help="conversation template (default: the one saved with the checkpoint)")
    parser.add_argument("--max-samples", type=int, default=256, help="questions of each file (default: 256)")
    parser.add_argument("--batch-size", default="auto", help="prompts at once, or auto: as memory allows (default)")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args(argv)
    if len(args.task_names) != len(args.question_file) or args.max_samples < 1:
        parser.error("--task_names needs a name for each question file, --max-samples at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        _represent(args)
    except (DataError, ValueError, OSError) as error:
        return bad_input(error)
    return 0


def _represent(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from llava.infer.answers import write_json
    from llava.infer.checkpoint import Checkpoint
    from llava.infer.engine import GenerationSettings, Generator, RequestError
    from llava.infer.questions import explain, read_questions
    from llava.progress import Progress

    files = [read_questions(file, args.image_folder) for file in args.question_file]
    indices = [np.unique(np.linspace(0, len(f.requests) - 1, args.max_samples).round().astype(int)) for f in files]
    checkpoint = Checkpoint(args.model_path, None, "auto", None)
    batch_size = None if args.batch_size == "auto" else int(args.batch_size)
    settings = GenerationSettings(max_new_tokens=1, batch_size=batch_size)
    generator = Generator(checkpoint.model, checkpoint.processor, args.conv_mode, settings)
    means = {}
    total = sum(map(len, indices))
    progress = Progress(total)
    with tqdm(total=total, unit="question", dynamic_ncols=True) as bar:
        for task, file, chosen in zip(args.task_names, files, indices, strict=True):
            states = []
            try:
                for batch in generator.states(_prompts(generator, file, chosen)):
                    states += [state.double().numpy() for _, state in batch]
                    bar.update(len(batch))
                    progress.advance(len(batch))
            except RequestError as error:
                raise DataError(explain(file.name(error.request_id), error.error)) from error
            means[task] = np.mean(states, axis=0).tolist()
    write_json(args.output, means)


def _prompts(generator: Generator, file: QuestionFile, indices: NDArray[np.int64]) -> list[Prompt]:
    from llava.infer.engine import RequestError

    prompts = []
    for index in indices.tolist():
        try:
            prompts.append(generator.prompts.prompt(file.requests[index]))
        except BadSampleError as error:
            raise RequestError(index, error) from error
    return prompts


if __name__ == "__main__":
    sys.exit(main())
