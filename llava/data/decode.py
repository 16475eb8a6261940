"""Decoding images ahead of training: the index reads headers only, and data that are broken behind one stop a training.

A million images take half an hour of a core and more, so a seeded choice is decoded unless all are asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llava.data.errors import BadSampleError, DataError
from llava.data.images import ImageFolder
from llava.data.problems import Problem, counted, described, problem_of
from llava.data.records import image_paths, read_records

AT_MOST = 1000
"""Images decoded unless all are asked for. A hundred JPEG files of 640 × 480 pixels took 0.17 CPU seconds."""

_BATCH = 64
_MEND = (
    "Training stops at such an image: replace these files, or take the records out. `--bad_samples skip` does not find "
    "them, because it reads headers only."
)


@dataclass(frozen=True)
class Decoded:
    """How many different images of how many were decoded; none of them is broken."""

    images: int
    total: int

    def __str__(self) -> str:
        if self.images == self.total:
            return f"all {self.total} images decoded"
        return f"{self.images} of {self.total} images decoded (--all_images: all of them)"


def decode_images(
    paths: Iterable[str],
    image_folder: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    at_most: int | None = AT_MOST,
    seed: int = 0,
) -> Decoded:
    """Decode images of a data set, `at_most` of them by a seeded choice, None for all.

    `paths` are relative to the image folder and may come repeatedly; `files` hold the records, which are read only to
    name those of a broken image.

    Raises:
        DataError: images are broken; it names them with their records, and says how many were decoded.
    """
    every = sorted(set(paths))
    chosen = every if at_most is None or at_most >= len(every) else random.Random(seed).sample(every, at_most)
    broken = _broken(ImageFolder(image_folder), chosen)
    decoded = Decoded(len(chosen), len(every))
    if broken:
        found = [one for file in files for one in _records_with(broken, file)]
        lines = [f"{counted(len(found))} with broken images ({decoded}):", *described(found), _MEND]
        raise DataError("\n".join(lines))
    return decoded


def _broken(folder: ImageFolder, paths: Sequence[str]) -> dict[str, BadSampleError]:
    def fault(path: str) -> BadSampleError | None:
        try:
            folder.open(path)
        except BadSampleError as error:
            return error
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders let go of Python's lock
        return {path: error for path, error in zip(paths, pool.map(fault, paths), strict=True) if error}


def _records_with(broken: dict[str, BadSampleError], file: str | os.PathLike[str]) -> Iterator[Problem]:
    for raw in read_records(file):
        for path in image_paths(raw.content):
            if path in broken:
                yield problem_of(str(file), raw, broken[path], path)
