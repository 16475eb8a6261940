"""Help and slips of the pen at once: without the ten seconds that torch and transformers take to be imported.

`usage.json` holds the help text and the names of all flags, as the parser has them. After a change of the arguments
`python -m llava.train.usage` writes it anew, and a test says when that has been forgotten.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("usage.json")
REQUIRED = ("--model_name_or_path", "--data_path", "--output_dir")


def answer(words: Sequence[str]) -> int | None:
    """Answer a command line for which nothing has to be loaded; return the exit code, None where there is more to do.

    Nothing is answered under another transformers, which has other flags.
    """
    usage = json.loads(FILE.read_text(encoding="utf-8"))
    if metadata.version("transformers") != usage["transformers"] or "--help_all" in words:
        return None
    if "--help" in words or "-h" in words:
        print("\n".join(usage["help"]))
        return 0
    fault = find_fault(words, usage["flags"])
    if fault is None:
        return None
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stderr.write(f"error: {fault}\n")
    return 2


def answer_or_go_on(words: Sequence[str]) -> None:
    """End the program where `answer` has all that is to be said."""
    code = answer(words)
    if code is not None:
        sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Train (`visatb train`); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    code = answer(words)
    if code is not None:
        return code
    from llava.train.train import main as train

    return train(words)


def find_fault(words: Sequence[str], known: Collection[str]) -> str | None:
    """What is wrong with the flags of a command line, their values left aside; None: nothing."""
    given = [_underscored(word.partition("=")[0]) for word in words if word.startswith("--")]
    for flag in REQUIRED:
        if flag not in given:
            return f"{flag} is missing"
    unknown = [flag for flag in given if flag not in known]
    return unknown_arguments(unknown, known) if unknown else None


def _underscored(flag: str) -> str:
    """A flag in that one of its two spellings which has no dashes within."""
    return f"--{flag.removeprefix('--').replace('-', '_')}"


def unknown_arguments(words: Sequence[str], known: Collection[str]) -> str:
    """The message about arguments that nobody knows, with the flag that each may be meant to be."""
    hints = {word: get_close_matches(word, known, n=1) for word in words if word.startswith("--")}
    text = ", ".join(word + (f" (did you mean {near[0]}?)" if near else "") for word, near in hints.items())
    return f"unknown arguments: {text or ' '.join(words)}"


def current() -> dict[str, Any]:
    """What `usage.json` has to hold, from the parser itself."""
    from llava.train.arguments import make_parser

    parser = make_parser()
    flags = sorted({_underscored(flag) for flag in parser.flags if flag.startswith("--")})
    parser.show_common_only()
    help_lines = parser.format_help().splitlines()
    return {"transformers": metadata.version("transformers"), "help": help_lines, "flags": flags}


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
