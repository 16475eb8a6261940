"""Where COCO's images lie: under their 2014 or 2017 names, by what the source folder holds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

_NAMES = {
    "train2014": "coco/train2014/COCO_train2014_{:012d}.jpg",
    "val2014": "coco/val2014/COCO_val2014_{:012d}.jpg",
    "test2015": "coco/test2015/COCO_test2015_{:012d}.jpg",
    "train2017": "coco/train2017/{:012d}.jpg",
    "val2017": "coco/val2017/{:012d}.jpg",
}


class CocoImages:
    """Image ids to paths relative to `source`. The 2014 and 2017 releases hold the same images under the same ids."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folders = [name for name in _NAMES if (source / "coco" / name).is_dir()]
        self.path = lru_cache(maxsize=65536)(self._path)

    def _path(self, image_id: int, split: str) -> str:
        """The image's path where it is there; else the one under its own `split` (a key such as `train2014`)."""
        for name in [split, *self._folders]:
            path = _NAMES[name].format(int(image_id))
            if (self._source / path).is_file():
                return path
        return _NAMES[split].format(int(image_id))
