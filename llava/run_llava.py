"""Ask a checkpoint about images: one question, or a chat in the terminal.

    python -m llava.run_llava --model-path CHECKPOINT --image-file view.jpg --query "What is in the picture?"
    python -m llava.run_llava --model-path CHECKPOINT --image-file view.jpg

Answers appear as they are written. Several images are shown in the order given; `<image>` in the query says where each
stands, otherwise they come first. A chat ends with an empty line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from eval.errors import bad_input
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER
from llava.infer.checkpoint import Checkpoint
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import Request, open_image
from llava.model.load import DTYPES

Turn = dict[str, str]


def with_images(query: str, num_images: int) -> str:
    """The query with one `<image>` per image. Raises ValueError where it holds another number of them."""
    query = query.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    marks = query.count(DEFAULT_IMAGE_TOKEN)
    if marks not in (0, num_images):
        raise ValueError(f"the query holds {marks} {DEFAULT_IMAGE_TOKEN}, but {num_images} images are given")
    return query if marks else f"{DEFAULT_IMAGE_TOKEN}\n" * num_images + query


def chat(answer: Callable[[list[Turn]], Iterator[str]], num_images: int, read: Callable[[], str]) -> None:
    """Ask what `read` gives until it gives nothing; earlier turns stay part of the conversation."""
    turns: list[Turn] = []
    while query := read().strip():
        try:
            asked = {"from": "human", "value": query if turns else with_images(query, num_images)}
            written = _show(answer([*turns, asked]))
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            continue
        turns += [asked, {"from": "gpt", "value": written}]


def make_parser() -> argparse.ArgumentParser:
    """The command line; every option is known by its dashed and its underscored spelling."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.run_llava", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", "--model_path", required=True, help="checkpoint folder")
    parser.add_argument("--model-base", "--model_base", help="base of an adapter, if not where its configuration says")
    parser.add_argument("--image-file", "--image_file", nargs="*", default=[], metavar="FILE", help="one or several")
    parser.add_argument("--query", help="the question; without it, a chat")
    parser.add_argument("--conv-mode", "--conv_mode", help="conversation template (default: the checkpoint's)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--top_p", "--top-p", type=float, help="nucleus sampling, with a temperature above 0")
    parser.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=int, default=1024, help="longest answer, in tokens"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: as saved, float32 as bfloat16 on a GPU; float32 on a CPU"
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu, … (default: a GPU where there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 on bad input."""
    args = make_parser().parse_args(argv)
    try:
        images = [open_image(file) for file in args.image_file]
        query = None if args.query is None else with_images(args.query, len(images))
        settings = GenerationSettings(args.max_new_tokens, args.temperature, args.top_p)
        checkpoint = Checkpoint(args.model_path, args.model_base, args.dtype, args.device)
        generator = Generator(checkpoint.model, checkpoint.processor, args.conv_mode, settings)

        def answer(turns: list[Turn]) -> Iterator[str]:
            return generator.stream(Request("query", turns, images))

        if query is not None:
            _show(answer([{"from": "human", "value": query}]))
        else:
            chat(answer, len(images), _read_line)
    except (ValueError, OSError) as error:
        return bad_input(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _read_line() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""


def _show(pieces: Iterator[str]) -> str:
    written = []
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        written.append(piece)
    sys.stdout.write("\n")
    return "".join(written).strip()


if __name__ == "__main__":
    sys.exit(main())
