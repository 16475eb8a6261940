"""What errors of writing mean, and what would mend them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# safetensors' and torch's own errors on a full disk; torch's neither has nor names the system's.
_FULL_IN_WORDS = re.compile(
    rf"{os.strerror(errno.ENOSPC)}|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+"
)


def write_problem(error: BaseException, folder: Path) -> str | None:
    """What an error says of writing into `folder`, with the cure; None where it is about something else."""
    for one in _chain(error):
        if (isinstance(one, OSError) and one.errno in _FULL) or _FULL_IN_WORDS.search(str(one)):
            return (
                f"{folder}: no space is left on its disk, or your quota is used up ({_free(folder)} free): free some, "
                "then the same command goes on from here"
            )
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        temporary = error.filename is None or str(error.filename).endswith(".tmp")  # a name that says nothing
        name = folder if temporary else error.filename
        return f"{name} cannot be written ({error.strerror}): choose a folder that this user may write to"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free(folder: Path) -> str:
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    return f"{shutil.disk_usage(there).free / 1e6:,.0f} MB"
