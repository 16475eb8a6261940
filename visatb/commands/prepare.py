"""`visatb prepare NAME --output DIR`: make a data set's task files and print what is in them."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visatb.prepare import SOURCES
from visatb.prepare.source import PrepareError, Source, Summary, prepare


def load_source(name: str) -> Source:
    """The source registered as `name`."""
    module, _, cls = SOURCES[name].partition(":")
    source: Source = getattr(importlib.import_module(module), cls)()
    return source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for bad input."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser(list(sys.argv[1:] if argv is None else argv))
    try:
        summaries = prepare(load_source(args.name), args, args.output, args.overwrite)
    except PrepareError as error:
        sys.stderr.write(f"visatb prepare {args.name}: {error}\n")
        return 2
    Console(width=None if sys.stdout.isatty() else 110).print(_table(args.output, summaries))
    return 0


def _parser(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="visatb prepare", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    chosen = [name for name in SOURCES if name in argv] or list(SOURCES)  # only what is asked for is imported
    for name in chosen:
        source = load_source(name)
        command = commands.add_parser(name, help=source.help, description=source.help, allow_abbrev=False)
        source.arguments(command)
        command.add_argument("--output", type=Path, required=True, help="folder to make")
        command.add_argument("--overwrite", action="store_true", help="replace what was prepared there before")
    return parser.parse_args(argv)


def _table(output: Path, summaries: Sequence[Summary]) -> Table:
    table = Table(title=str(output), title_justify="left")
    for heading in ("file", "samples", "turns", "images", "images missing", "words per answer"):
        table.add_column(heading, justify="left" if heading == "file" else "right", overflow="fold")
    for row in summaries:
        numbers = (row.samples, row.turns, row.images, row.images_missing)
        table.add_row(row.file, *(f"{number:,}" for number in numbers), f"{row.mean_answer_words:.1f}")
    return table
