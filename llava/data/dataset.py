"""The training samples: tokens from the memory-mapped index, pixels from the image files.

Legend: n samples, S tokens of one sample with each image's placeholder repeated.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from llava.data.errors import REASONS, BadSampleError, DataError
from llava.data.images import ImageFolder
from llava.data.store import IndexRow, SampleStore
from llava.data.tokens import expand_images, labels_from_runs, place_images
from llava.model.family import ImageInputs

if TYPE_CHECKING:
    from llava.model.family import Processor

_FIND_ALL = "`visatb validate` and `python -m llava.train.check` find all such images with --all_images"


class InstructionDataset(Dataset[dict[str, Any]]):
    """The samples of an index.

    `task_names` gives the order that task ids refer to; `task_ids` int32[n]; `lengths` int32[n], the tokens S of each
    sample; `target_tokens` int64[n], those that it is trained on; `has_image` bool[n]. None of them opens an image.
    """

    def __init__(
        self, index_path: str | os.PathLike[str], image_folder: str | os.PathLike[str] | None, processor: Processor
    ) -> None:
        self.store = SampleStore(index_path)
        self.processor = processor
        self.images = None if image_folder is None else ImageFolder(image_folder)
        self.task_names: list[str] = list(self.store.summary["task_names"])
        self.task_ids: NDArray[np.int32] = self.store.column("task_id")
        self.lengths: NDArray[np.int32] = self.store.column("length")
        self.target_tokens: NDArray[np.int64] = self.store.target_tokens()
        self.has_image: NDArray[np.bool_] = self.store.has_image()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` int64[S], `vitw_task_ids` int, and the pixel inputs of the images if any."""
        index = range(len(self))[index]  # counts from the end too, and ends iteration
        sample = self.store[index]
        is_image = sample.input_ids == self.processor.image_token_id
        labels = labels_from_runs(sample.input_ids, sample.target_runs)
        images = self._image_inputs(sample) if sample.images else ImageInputs({}, [])
        return {
            "input_ids": _to_tensor(place_images(sample.input_ids, is_image, images.runs)),
            "labels": _to_tensor(expand_images(labels, is_image, sample.image_tokens)),
            "vitw_task_ids": sample.task_id,
            **images.pixels,
        }

    def _image_inputs(self, sample: IndexRow) -> ImageInputs:
        images = self.processor.image_inputs(self._open_images(sample))
        lengths = [len(run) for run in images.runs]
        if lengths != sample.image_tokens.tolist():
            raise DataError(
                f"record {sample.record_id}: its images take {lengths} tokens, {sample.image_tokens.tolist()} when the "
                f"data were indexed; delete the index {self.store.folder} to build it again"
            )
        return images

    def _open_images(self, sample: IndexRow) -> list[Image.Image]:
        if self.images is None:
            raise DataError(f"record {sample.record_id} has images, but no image folder is given")
        opened = []
        for path, size in zip(sample.images, sample.image_sizes.reshape(-1, 2), strict=True):
            try:
                image = self.images.open(path)
            except BadSampleError as error:
                raise DataError(
                    f"record {sample.record_id}: {error.reason}: {error.detail} ({REASONS[error.reason]}; {_FIND_ALL})"
                ) from error
            if (image.height, image.width) != tuple(size):
                raise DataError(
                    f"record {sample.record_id}: {path} has changed since the data were indexed "
                    f"({size[1]} × {size[0]} pixels then, {image.width} × {image.height} now); delete the index "
                    f"{self.store.folder} to build it again"
                )
            opened.append(image)
        return opened


def _to_tensor(tokens: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))
