"""The `visatb` command: a table of subcommands, each loaded only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("visatb.commands.prepare:main", "make a data set's task files"),
    "run": (
        "visatb.commands.run:main",
        "run an experiment, or what is left of it: proxies, λ, final runs, report",
    ),
    "plan": ("visatb.commands.plan:main", "what an experiment will run: samples, steps, disk, cost"),
    "status": ("visatb.commands.status:main", "where an experiment stands, live"),
    "validate": ("visatb.commands.validate:main", "check an experiment's data and settings before anything is trained"),
    "init": ("visatb.commands.init:main", "write an experiment file for a folder of LLaVA JSON files"),
    "report": ("visatb.commands.report:main", "make an experiment's report (again)"),
    "zeroshot": ("llava.eval.run:main", "answer and score the zero-shot benchmarks"),
    "train": ("llava.train.usage:main", "fine-tune a multimodal model under a task-weighting method"),
    "convert": (
        "visatb.commands.convert:main",
        "convert data: LLaVA JSON, messages, parquet, other trainers",
    ),
    "export": ("visatb.commands.export:main", "task weights as the mixing ratios of other trainers"),
    "convert-checkpoint": ("llava.model.convert:main", "convert a checkpoint between LLaVA's and transformers' layout"),
    "merge-lora": ("llava.model.merge_lora:main", "merge a LoRA adapter into its base model"),
}
"""Name → (module:function, help line). The function takes the remaining arguments and returns an exit code or None."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code (2 for an unknown one)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        sys.stderr.write(f"visatb: unknown command {words[0]!r}\n\n{_usage()}")
        return 2
    module, function = COMMANDS[words[0]][0].split(":")
    return getattr(importlib.import_module(module), function)(words[1:]) or 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: visatb COMMAND [ARGUMENTS]", "", *lines, "", "visatb COMMAND --help tells more.", ""])


if __name__ == "__main__":
    sys.exit(main())
