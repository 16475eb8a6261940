"""What the paper's benchmarks share as sources: their arguments, ready annotation files, the experiment file."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from visatb.prepare import ready
from visatb.prepare.files import stamp
from visatb.prepare.output import Output, experiment_file, link_images
from visatb.prepare.source import PrepareError, Source, Summary


class Benchmark(Source):
    """A benchmark of several tasks, read from its publishers' files, or with `--ready` from annotation files.

    Images stay where they are: `images` in the output links to the source, and records name them relative to it.
    """

    name: ClassVar[str]
    tasks: ClassVar[Sequence[str]]
    version: ClassVar[int] = 1
    decisive: ClassVar[Sequence[str]] = ("seed", "missing", "tasks")  # the arguments that decide the output

    @abstractmethod
    def files(self, args: argparse.Namespace) -> list[Path]:
        """The publishers' files that will be read; PrepareError where one is missing."""

    @abstractmethod
    def make(self, args: argparse.Namespace, output: Output) -> None:
        """Write the tasks in `args.tasks`."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--source", type=Path, required=True, help="folder of the publishers' files (docs/data.md)")
        parser.add_argument("--tasks", nargs="+", default=list(self.tasks), metavar="TASK", help="only these tasks")
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

    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        unknown = [task for task in args.tasks if task not in self.tasks]
        if unknown:
            raise PrepareError(f"unknown task {', '.join(unknown)}; known: {', '.join(self.tasks)}")
        args.tasks = [task for task in self.tasks if task in args.tasks]
        if not args.source.is_dir():
            raise PrepareError(f"--source {args.source}: there is no such folder")
        if args.ready:
            chosen: Sequence[str] = ("missing", "tasks", "ready")
            files = ready.files(args.source)
        else:
            self.check(args)
            chosen = self.decisive
            files = self.files(args)
        given = {name: getattr(args, name) for name in chosen}
        return {"source": self.name, "version": self.version, **given, "files": stamp(files)}

    def check(self, args: argparse.Namespace) -> None:
        """PrepareError for arguments that do not fit."""

    def image_folder(self, args: argparse.Namespace, folder: Path) -> Path:
        """The folder that images are relative to, `images` in the output."""
        link_images(folder, args.source)
        return Path(args.source)

    def write(self, args: argparse.Namespace, folder: Path) -> list[Summary]:
        drop = args.missing == "drop"
        if args.ready:
            link_images(folder, args.source)
            output = Output(folder, args.source, args.seed, drop)
            ready.write(args.source, output, args.tasks, self.name)
        else:
            output = Output(folder, self.image_folder(args, folder), args.seed, drop)
            self.make(args, output)
        summaries = sorted(output.summaries, key=lambda row: self.tasks.index(row.task))
        if {row.task for row in summaries} == set(self.tasks):
            experiment_file(self.name, folder, args.output, summaries)
        return summaries
