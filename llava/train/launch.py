"""torchrun without its traceback: start the processes of this node, return the exit code of the one that failed first.

python -m llava.train.launch --nproc_per_node 8 --standalone --module llava.train.train …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun's command line; return 0, or the first failed process's exit code (128 + n for signal n)."""
    try:
        run.main(None if argv is None else list(argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code != 2:  # 2: bad input, which the process itself has explained
            sys.stderr.write(f"rank {rank} ended with exit code {code}; its messages are above\n")
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
