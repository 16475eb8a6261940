"""Tiny checkpoints and mixed data of the Academic tasks for training runs."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.tiny import tiny_clip, tiny_language_model, tiny_llava, tiny_qwen2_vl

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts_visatb"
ACADEMIC = ("ShareGPT4V", "RefCOCO-caption", "VQAv2", "GQA", "ChartQA", "OCRVQA", "RefCOCO-bbox", "ShareGPT")
CHAT = ("conversation", "detail", "complex_reasoning")
M3IT = (
    *("MS-COCO", "TextCaps", "Image-Paragraph-Captioning", "COCO-GOI", "COCO-Text", "ImageNet", "COCO-ITM"),
    *("e-SNLI-VE", "Mocheg", "Shapes-VQA", "OCRVQA", "GQA", "ScienceQA", "CLEVR", "NLVR", "Visual-Dialog", "Multi30k"),
)
WORDS = ("red", "green", "small", "big", "square", "dog", "cat", "on", "under", "table")


@dataclass
class Bench:
    """Folders that training reads."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    def data(self, tasks: tuple[str, ...] | None, text_only: bool = True, num: int = 48) -> Path:
        """A data file of `num` records of `tasks` in turn, every fourth without an image; None: no `task` field."""
        file = self.root / f"{'-'.join(tasks or ('none',))[:30]}-{text_only}-{num}.json"
        rng = random.Random(0)
        records = []
        self.images.mkdir(exist_ok=True)
        for number in range(num):
            words = rng.choices(WORDS, k=1 + number % 8)
            record = {"id": f"r{number}", **({} if tasks is None else {"task": tasks[number % len(tasks)]})}
            question = "what is this?"
            if not (text_only and number % 4 == 3):
                name = f"{number % 6}.png"
                Image.new("RGB", (30 + number % 6, 40), (number % 6 * 40, 100, 30)).save(self.images / name)
                record["image"], question = name, f"<image>\n{question}"
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": " ".join(words)}]
            records.append({**record, "conversations": turns})
        file.write_text(json.dumps(records))
        return file


def make_bench(root: Path) -> Bench:
    tiny_language_model(root / "lm")
    tiny_clip(root / "clip")
    tiny_llava(root / "llava")
    tiny_qwen2_vl(root / "qwen")
    return Bench(root)
