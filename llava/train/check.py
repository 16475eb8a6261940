"""Check a training command's flags, model and data and start nothing: `python -m llava.train.check FLAG …`.

The flags are those of llava.train.train, which does the same checks again on every process. The data index stays and
is found by the training that follows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.data.errors import DataError
from llava.train.arguments import UsageError, parse_arguments
from llava.train.source import find_source
from llava.train.tasks import resolve_tasks
from llava.train.train import load_data, set_up_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    set_up_logging()
    try:
        check(argv)
    except (UsageError, DataError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def check(words: Sequence[str] | None = None) -> None:
    """Check a training command line (none: the process's own).

    Raises:
        UsageError, DataError: what training would raise before it loads the model.
    """
    model, data, training = parse_arguments(words, start=False)
    tasks = resolve_tasks(data, training)
    source = find_source(model, data, training)
    found = load_data(data.data_path, source, tasks, data, training)
    tasks.named_as(found.task_names, data.num_tasks)
    if data.eval_data_path:
        load_data(data.eval_data_path, source, tasks, data, training)


if __name__ == "__main__":
    sys.exit(main())
