"""From samples to a batch: padded rows, or samples packed end to end.

Legend: B rows, S tokens of a row, R position rows (1, or 4 with rotary positions in three axes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.data.template import image_ids
from llava.data.tokens import place_images

if TYPE_CHECKING:
    from llava.model.family import Processor

Sample = dict[str, Any]
"""`input_ids` and `labels` int64[s], `vitw_task_ids` int, and pixel inputs where the sample has images."""

_TOKEN_KEYS = ("input_ids", "labels", "vitw_task_ids")


class Collator:
    """Makes a batch of samples.

    Unpacked: `input_ids`, `labels` int64[B, S], `vitw_task_ids` int64[B], the pixel inputs of all samples one after the
    other, and the family's further inputs per token. `attention_mask` int64[B, S] is there only where the family needs
    it: attention kernels are slower with one, and in causal attention no token sees the padding to its right.

    Packed: rows of at most `model_max_length` tokens, each of several samples; no `attention_mask`; `vitw_task_ids`
    int64[B, S]; `position_ids` int64[B, S] (int64[R, B, S] for R > 1) begin anew with each sample, and with the padding
    at the end of a row. A row longer than `model_max_length` occurs only for a sample that is itself longer.

    Packed with `variable_length`, as flash attention needs it: one row of all samples without padding, and where each
    of them begins and ends in `cu_seq_lens_q` and `cu_seq_lens_k` int32[samples + 1], with the longest sample in
    `max_length_q` and `max_length_k` (numbers). Several rows would be taken for one sample each.

    A batch without any image gets one more row (packed: one more sample) with a blank image, task 0 and no targets, so
    that the vision tower and the projector take part on every process; under ZeRO-3 or DDP they would hang otherwise.
    """

    def __init__(
        self, processor: Processor, model_max_length: int, packing: bool = False, variable_length: bool = False
    ) -> None:
        self.processor = processor
        self.model_max_length = model_max_length
        self.packing = packing
        self.variable_length = variable_length
        pad = processor.tokenizer.pad_token_id
        # Padding is masked, or a sequence of its own, and is never a target: any id that is no image serves.
        self.pad_token_id = pad if pad is not None else processor.tokenizer.eos_token_id
        if self.pad_token_id is None:
            raise ValueError("the tokenizer has neither a padding nor an end token to pad rows with")
        self._blank: Sample | None = None

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        samples = [_without_first_target(sample) for sample in samples]
        if all(len(sample) == len(_TOKEN_KEYS) for sample in samples):
            samples.append(self._blank_sample())
        return self._packed(samples) if self.packing else self._padded(samples)

    def _padded(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        size = max(len(sample["input_ids"]) for sample in samples)
        input_ids = self._rows([sample["input_ids"] for sample in samples], size, self.pad_token_id)
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        mask = {"attention_mask": (torch.arange(size) < lengths[:, None]).long()}
        return {
            "input_ids": input_ids,
            "labels": self._rows([sample["labels"] for sample in samples], size, IGNORE_INDEX),
            **(mask if self.processor.needs_padding_mask else {}),
            "vitw_task_ids": torch.tensor([sample["vitw_task_ids"] for sample in samples]),
            **self._pixels(samples),
            **self.processor.row_inputs(input_ids),
        }

    def _packed(self, samples: Sequence[Sample]) -> dict[str, Any]:
        lengths = [len(sample["input_ids"]) for sample in samples]
        capacity = sum(lengths) if self.variable_length else self.model_max_length
        packs = [[samples[i] for i in pack] for pack in first_fit_decreasing(lengths, capacity)]
        size = max(sum(len(sample["input_ids"]) for sample in pack) for pack in packs)
        input_ids = self._rows([_joined(pack, "input_ids") for pack in packs], size, self.pad_token_id)
        positions = torch.stack([self._positions(pack, size) for pack in packs], dim=1)  # [R, B, S]
        tasks = [
            torch.cat([torch.full_like(sample["input_ids"], sample["vitw_task_ids"]) for sample in pack])
            for pack in packs
        ]
        return {
            "input_ids": input_ids,
            "labels": self._rows([_joined(pack, "labels") for pack in packs], size, IGNORE_INDEX),
            "vitw_task_ids": self._rows(tasks, size, 0),
            "position_ids": positions[0] if len(positions) == 1 else positions,
            **self._pixels([sample for pack in packs for sample in pack]),
            **self.processor.row_inputs(input_ids),
            **(_boundaries(packs[0]) if self.variable_length else {}),
        }

    def _positions(self, pack: Sequence[Sample], size: int) -> Tensor:
        """int64[R, S] of one packed row."""
        parts = [self.processor.position_ids(sample["input_ids"], sample.get("image_grid_thw")) for sample in pack]
        padding = size - sum(part.shape[1] for part in parts)
        parts.append(torch.arange(padding).expand(parts[0].shape[0], padding))
        return torch.cat(parts, dim=1)

    def _blank_sample(self) -> Sample:
        if self._blank is None:
            images = self.processor.image_inputs([self.processor.blank_image()])
            ids = image_ids(self.processor)
            expanded = place_images(ids, ids == self.processor.image_token_id, images.runs).astype(np.int64)
            self._blank = {
                "input_ids": torch.from_numpy(expanded),
                "labels": torch.full((len(expanded),), IGNORE_INDEX),
                "vitw_task_ids": 0,
                **images.pixels,
            }
        return self._blank

    def _pixels(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return self.processor.join_pixels(
            [{name: value for name, value in sample.items() if name not in _TOKEN_KEYS} for sample in samples]
        )

    @staticmethod
    def _rows(rows: Sequence[Tensor], size: int, filler: int) -> Tensor:
        batch = torch.full((len(rows), size), filler, dtype=torch.int64)
        for target, row in zip(batch, rows, strict=True):
            target[: len(row)] = row
        return batch


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in packs of at most `capacity`; a longer one gets a pack of its own."""
    packs: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        pack = next((number for number, room in enumerate(free) if room >= lengths[index]), None)
        if pack is None:
            packs.append([])
            free.append(capacity)
            pack = len(packs) - 1
        packs[pack].append(index)
        free[pack] -= lengths[index]
    return packs


def _boundaries(pack: Sequence[Sample]) -> dict[str, Any]:
    """Where each sample of a row begins and ends, under the names that transformers' flash attention reads."""
    lengths = [len(sample["input_ids"]) for sample in pack]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends} | dict.fromkeys(
        ("max_length_q", "max_length_k"), max(lengths)
    )


def _without_first_target(sample: Sample) -> Sample:
    if sample["labels"][0] == IGNORE_INDEX:
        return sample
    labels = sample["labels"].clone()
    labels[0] = IGNORE_INDEX
    return {**sample, "labels": labels}


def _joined(pack: Sequence[Sample], key: str) -> Tensor:
    return torch.cat([sample[key] for sample in pack])
