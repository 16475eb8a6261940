"""Check a training command's flags, model and data and start nothing: `python -m llava.train.check FLAG …`.

The flags are those of llava.train.train, which does the same checks again on every process, except that only this
command decodes images: a seeded choice of 1,000, or all of them with `--all_images`. The data index stays and is found
by the training that follows.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from llava.train.usage import answer_or_go_on

    answer_or_go_on([word for word in sys.argv[1:] if word != "--all_images"])

import logging
from collections.abc import Sequence

from eval.errors import bad_input
from llava.data.decode import AT_MOST, decode_images
from llava.data.errors import DataError
from llava.train.arguments import UsageError, parse_arguments
from llava.train.source import find_source
from llava.train.tasks import resolve_tasks
from llava.train.train import load_data, set_up_logging

logger = logging.getLogger("llava.train")

ALL_IMAGES = "--all_images"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 2 for bad input)."""
    set_up_logging()
    try:
        check(argv)
    except (UsageError, DataError) as error:
        return bad_input(error)
    return 0


def check(words: Sequence[str] | None = None) -> None:
    """Check a training command line (none: the process's own).

    Raises:
        UsageError, DataError: what training would raise before it loads the model.
    """
    words = list(sys.argv[1:] if words is None else words)
    at_most = None if ALL_IMAGES in words else AT_MOST
    model, data, training = parse_arguments([word for word in words if word != ALL_IMAGES], start=False)
    tasks = resolve_tasks(data, training)
    source = find_source(model, data, training)
    found = load_data(data.data_path, source, tasks, data, training)
    tasks.named_as(found.task_names, data.num_tasks)
    paths = found.store.image_paths()
    if data.eval_data_path:
        paths |= load_data(data.eval_data_path, source, tasks, data, training).store.image_paths()
    if data.image_folder is not None:
        files = [*data.data_path, *data.eval_data_path]
        logger.info("%s", decode_images(paths, data.image_folder, files, at_most, training.seed))


if __name__ == "__main__":
    sys.exit(main())
