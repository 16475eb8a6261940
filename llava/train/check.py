"""Check a training command's flags, model and data and start nothing: `python -m llava.train.check FLAG …`.

The flags are those of llava.train.train, which does the same checks again on every process. DeepSpeed is left out: it
builds its operators when its configuration is parsed, which takes longer than everything here. The data index stays
and is found by the training that follows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.errors import DataError
from llava.train.arguments import UsageError, parse_arguments
from llava.train.model import find_source
from llava.train.tasks import resolve_tasks
from llava.train.train import load_data, set_up_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    words = list(sys.argv[1:] if argv is None else argv)
    set_up_logging()
    try:
        check(words)
    except (UsageError, DataError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def check(words: Sequence[str]) -> None:
    """Check a training command line.

    Raises:
        UsageError, DataError: what training would raise before it loads the model.
    """
    plain, configurations = without_flag(words, "--deepspeed")
    for file in configurations:
        if not Path(file).is_file():
            raise UsageError(f"--deepspeed: {file} does not exist")
    model, data, training = parse_arguments(plain)
    tasks = resolve_tasks(data, training)
    source = find_source(model, data, training)
    found = load_data(data.data_path, source, tasks, data, training)
    tasks.named_as(found.task_names, data.num_tasks)
    if data.eval_data_path:
        load_data(data.eval_data_path, source, tasks, data, training)


def without_flag(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """(words without a flag and its value, the values it had)."""
    rest, values = list(words), []
    while flag in rest:
        place = rest.index(flag)
        values += rest[place + 1 : place + 2]
        del rest[place : place + 2]
    return rest, values


if __name__ == "__main__":
    sys.exit(main())
