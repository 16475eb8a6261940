"""Bad records: which, what is wrong with each, and how a message shows many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llava.data.errors import REASONS, BadSampleError
from llava.data.images import stamp
from llava.data.records import RawRecord, record_name

SHOWN_ALIKE = 3
"""Records of one cause that a message names."""


class Problem(NamedTuple):
    """A record left out; `image` is the file at fault where it is one."""

    file: str
    position: int
    record_id: str
    reason: str
    detail: str
    image: str | None

    def __str__(self) -> str:
        return f"{self.file}, record {self.record_id} (no. {self.position}): {self.reason}: {self.detail}"

    def as_dict(self, image_folder: str | None) -> dict[str, Any]:
        """For the list of records left out, with the state of the image, so that a mended one is noticed."""
        state = None if self.image is None else stamp(image_folder, self.image)
        return {**self._asdict(), "stamp": state}


def problem_of(file: str, raw: RawRecord, error: BadSampleError, image: str | None = None) -> Problem:
    """What is wrong with a record of `file`, as a Problem."""
    return Problem(file, raw.position, record_name(raw.content, raw.position), error.reason, error.detail, image)


def described(problems: Sequence[Problem]) -> Iterator[str]:
    """A message's lines: of each cause in a file the first few, how many more there are, and what would mend them."""
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.file, problem.reason), []).append(problem)
    for (file, reason), group in alike.items():
        yield from (f"  {problem}" for problem in group[:SHOWN_ALIKE])
        if len(group) > SHOWN_ALIKE:
            yield f"  … and {len(group) - SHOWN_ALIKE} more in {file}: {reason}"
    yield "To mend:"
    yield from (f"  {reason}: {REASONS[reason]}" for reason in dict.fromkeys(reason for _, reason in alike))


def counted(count: int, kind: str = "") -> str:
    """A number of records, in words."""
    return f"{count} {kind}record{'' if count == 1 else 's'}"
