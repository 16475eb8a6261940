"""Images that keep their own resolution: bounds on their pixels, and rotary positions in three axes.

Qwen's models brought both, and others took them over (GLM-4.xV among them). An image becomes a grid of patches; squares
of ``merge_size`` × ``merge_size`` patches make one token.

Legend: n images, S tokens.
"""

from __future__ import annotations

from typing import Any

import torch


def has_pixel_bounds(image_processor: Any) -> bool:
    """Whether this image processor bounds an image's area in pixels."""
    size = getattr(image_processor, "size", None) or {}
    bounds = [size.get(name) for name in ("shortest_edge", "longest_edge")]
    return hasattr(image_processor, "merge_size") and None not in bounds


def limit_pixels(image_processor: Any, least: int | None, most: int | None) -> None:
    """Set bounds on an image's pixels, None to leave one as it is. Raises ValueError for bounds that cannot be."""
    size = dict(image_processor.size)
    size |= {name: value for name, value in (("shortest_edge", least), ("longest_edge", most)) if value is not None}
    if not 0 < size["shortest_edge"] <= size["longest_edge"]:
        raise ValueError(f"images of at least {size['shortest_edge']} and at most {size['longest_edge']} pixels")
    image_processor.size = size


def fit_images(image_processor: Any, tokens: int) -> int | None:
    """Bound images to so many tokens where they could take more; returns the new bound in pixels, None if none."""
    area = (image_processor.patch_size * image_processor.merge_size) ** 2
    if image_processor.size["longest_edge"] <= tokens * area:
        return None
    limit_pixels(image_processor, None, max(tokens * area, image_processor.size["shortest_edge"]))
    return int(image_processor.size["longest_edge"])


def grid_positions(
    input_ids: torch.Tensor, image_token_id: int, grids: torch.Tensor | None, merge_size: int
) -> torch.Tensor:
    """``int64[4, S]`` of one sample: place in the sample, then rotary time, height and width.

    ``grids: int64[n, 3]`` are the ``image_grid_thw`` of the sample's images in order. Text advances all three
    rotary rows by one a token; an image lies on a grid that starts where the text stands and advances it by its
    longer side. Raises ValueError if the image tokens are not the grids' number.
    """
    rows = torch.empty(4, input_ids.shape[0], dtype=torch.int64, device=input_ids.device)
    rows[0] = torch.arange(input_ids.shape[0], device=input_ids.device)
    image_places = (input_ids == image_token_id).nonzero().flatten().tolist()
    done, position, seen = 0, 0, 0
    sizes = [] if grids is None else grids.tolist()
    for time, height, width in sizes:
        merged = time, height // merge_size, width // merge_size
        count = merged[0] * merged[1] * merged[2]
        if seen + count > len(image_places):
            raise ValueError(f"{len(image_places)} image tokens, but the grids {sizes} need more")
        start = image_places[seen]
        rows[1:, done:start] = position + torch.arange(start - done, device=input_ids.device)
        position += start - done
        axes = [torch.arange(size, device=input_ids.device) for size in merged]
        rows[1:, start : start + count] = position + torch.cartesian_prod(*axes).reshape(count, 3).T
        position += max(merged[1:])
        done, seen = start + count, seen + count
    if seen != len(image_places):
        raise ValueError(f"{len(image_places)} image tokens, but the grids account for {seen}")
    rows[1:, done:] = position + torch.arange(input_ids.shape[0] - done, device=input_ids.device)
    return rows
