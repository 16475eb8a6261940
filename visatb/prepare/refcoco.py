"""RefCOCO as two tasks of the Academic Benchmark: describing a box, and finding the box of a description.

Read as its publisher ships it: `refcoco/refs(unc).p`, a pickle, and `instances.json` in COCO's format. Training
conversations hold all of an image, cut into fewer than 10 turns (questions with their answers); paper, Appendix A
(2), (3). Validation is the publisher's `val`, test is `testB`.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from visatb.prepare.coco import CocoImages
from visatb.prepare.disk import DiskGroups
from visatb.prepare.files import field, find, items, text
from visatb.prepare.output import Output
from visatb.prepare.source import PrepareError, Record

CAPTION, BBOX = "RefCOCO-caption", "RefCOCO-bbox"
MAX_TURNS = 9
Frame = Literal["square", "image"]


class Region(NamedTuple):
    """A box `[x1, y1, x2, y2]` in text, and what people called it."""

    id: str
    image: str
    box: str
    expressions: list[str]


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and texts, and nothing that would have to be imported: no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain containers, numbers and texts are read")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_plain_pickle(path: Path) -> Any:
    """A pickle of plain values, Python 2's included; PrepareError for any other."""
    try:
        return PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except OSError as error:
        raise PrepareError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise PrepareError(f"{path} is not a pickle of plain values ({type(error).__name__}: {error})") from error


def box_text(box: Sequence[float], width: float, height: float, frame: Frame) -> str:
    """COCO's (x, y, width, height) in pixels as `[x1, y1, x2, y2]`, fractions with two decimals.

    Of the image padded to a square with `frame` "square", as in LLaVA-v1.5's data and as its image processor shows the
    image to the model; of the image itself with "image".
    """
    x, y, w, h = box
    side = max(width, height)
    if frame == "square":
        left, top, across, down = (side - width) / 2, (side - height) / 2, side, side
    else:
        left, top, across, down = 0.0, 0.0, width, height
    corners = ((x + left) / across, (y + top) / down, (x + w + left) / across, (y + h + top) / down)
    return "[" + ", ".join(f"{min(1.0, max(0.0, corner)):.2f}" for corner in corners) + "]"


def caption_question(box: str) -> str:
    """Table 9's instruction with its box."""
    return f"Provide a short description for this region: {box}."


def bbox_question(expression: str) -> str:
    """Table 9's instruction with its sentence."""
    return f"Provide the bounding box coordinate of the region this sentence describes: {expression}."


class RefCOCO:
    """The publisher's files under `refcoco/`."""

    def __init__(self, source: Path, frame: Frame) -> None:
        self._folder = source / "refcoco"
        self._coco = CocoImages(source)
        self._frame: Frame = frame

    def files(self) -> list[Path]:
        return [self._refs(), self._instances()]

    def _refs(self) -> Path:
        return find(self._folder, "refs(unc).p")

    def _instances(self) -> Path:
        return find(self._folder, "instances.json")

    def regions(self) -> dict[str, list[Region]]:
        """The regions of train, val and testB, in the file's order; RefCOCO has 50,000 in all."""
        file, instances = self._refs(), self._instances()
        refs = read_plain_pickle(file)
        if not isinstance(refs, list):
            raise PrepareError(f"{file} holds a {type(refs).__name__}, not a list of references")
        wanted = {field(ref, "ann_id", file) for ref in refs}
        boxes = {a["id"]: a["bbox"] for a in items(instances, "annotations.item") if a["id"] in wanted}
        sizes = {image["id"]: (image["width"], image["height"]) for image in items(instances, "images.item")}
        found: dict[str, list[Region]] = {"train": [], "val": [], "testB": []}
        for ref in refs:
            if field(ref, "split", file) not in found:
                continue
            box, size = boxes.get(ref["ann_id"]), sizes.get(field(ref, "image_id", file))
            if box is None or size is None:
                raise PrepareError(f"{file}, ref_id {ref.get('ref_id')}: its annotation or image is not in {instances}")
            sentences = [text(field(sentence, "sent", file)) for sentence in field(ref, "sentences", file)]
            expressions = [sentence.rstrip(".") for sentence in sentences if sentence.rstrip(".")]
            if expressions:
                image = self._coco.path(ref["image_id"], "train2014")
                name = str(field(ref, "ref_id", file))
                found[ref["split"]].append(Region(name, image, box_text(box, *size, self._frame), expressions))
        return found


def _caption_turns(region: Region) -> Iterator[tuple[str, str]]:
    for expression in region.expressions:
        yield caption_question(region.box), expression


def _bbox_turns(region: Region) -> Iterator[tuple[str, str]]:
    for expression in region.expressions:
        yield bbox_question(expression), region.box


def write_refcoco(source: RefCOCO, output: Output, tasks: Sequence[str]) -> None:
    """Write the tasks asked for. A box to describe is one question, with all its expressions as references; an
    expression to find is one question."""
    regions = source.regions()
    for task, turns in ((CAPTION, _caption_turns), (BBOX, _bbox_turns)):
        if task not in tasks:
            continue
        output.write(task, "train", _conversations(task, regions["train"], turns, output))
        for split, name in (("val", "val"), ("test", "testB")):
            questions = _captions(regions[name]) if task == CAPTION else _boxes(regions[name])
            output.write(task, split, questions)


def _conversations(
    task: str, regions: Sequence[Region], turns: Callable[[Region], Iterator[tuple[str, str]]], output: Output
) -> Iterator[Record]:
    with DiskGroups(output.folder) as groups:
        groups.extend((region.image, pair) for region in regions for pair in turns(region))
        for image, pairs in groups:
            for number, part in enumerate(segments(pairs)):
                yield _record(f"{task}-{Path(image).stem}-{number}", image, part)


def segments(pairs: Sequence[Any]) -> list[Sequence[Any]]:
    """Question-answer pairs in as few parts as have at most 9 each, none more than one longer than another."""
    parts = -(-len(pairs) // MAX_TURNS)
    edges = [len(pairs) * number // parts for number in range(parts + 1)]
    return [pairs[start:end] for start, end in itertools.pairwise(edges)]


def _captions(regions: Sequence[Region]) -> Iterator[Record]:
    for region in regions:
        yield _record(region.id, region.image, [(caption_question(region.box), region.expressions)])


def _boxes(regions: Sequence[Region]) -> Iterator[Record]:
    for region in regions:
        for number, (question, box) in enumerate(_bbox_turns(region)):
            yield _record(f"{region.id}-{number}", region.image, [(question, box)])


def _record(name: str, image: str, pairs: Sequence[Any]) -> Record:
    turns: list[dict[str, Any]] = []
    for question, answer in pairs:
        asked = question if turns else f"<image>\n{question}"
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}
