"""Tiny checkpoints, made once, and models loaded from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.infer.prompts import Request
from llava.model.load import load_model_and_processor
from tests.tiny import tiny_llava, tiny_qwen2_5_vl, tiny_qwen2_vl

MAKERS = {"llava": tiny_llava, "qwen2_vl": tiny_qwen2_vl, "qwen2_5_vl": tiny_qwen2_5_vl}
WORDS = ["what", "is", "the", "colour", "of", "this", "small", "red", "square", "in", "picture", "three", "one", "word"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """name → folder of a tiny checkpoint, made when first asked for."""
    folder = tmp_path_factory.mktemp("checkpoints")

    class Made(dict):
        def __missing__(self, name):
            self[name] = MAKERS[name](folder / f"tiny-{name}")
            return self[name]

    return Made()


@pytest.fixture
def load(checkpoints):
    return lambda name: load_model_and_processor(checkpoints[name], dtype=torch.float32)


def noise(rng, height=None, width=None):
    size = (height or int(rng.integers(20, 90)), width or int(rng.integers(20, 90)), 3)
    return Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))


def mixed_requests(count=14, seed=0):
    """Requests with 0, 1 and 2 images and 2 to 30 words."""
    rng = np.random.default_rng(seed)
    requests = []
    for place in range(count):
        images = [noise(rng) for _ in range(place % 3)]
        text = "<image>\n" * len(images) + " ".join(rng.choice(WORDS, size=rng.integers(2, 30)))
        requests.append(Request(f"q{place}", [{"from": "human", "value": text}], images))
    return requests


@pytest.fixture
def world(tmp_path):
    """A folder with images/0.png … 5.png and two question files of 7 and 5 records."""
    rng = np.random.default_rng(3)
    (tmp_path / "images").mkdir()
    for number in range(6):
        noise(rng).save(tmp_path / "images" / f"{number}.png")
    for task, count in (("vqa", 7), ("cap", 5)):
        records = []
        for place in range(count):
            image = {"image": f"{place % 6}.png"} if place % 3 else {}
            text = "<image>\n" * len(image) + " ".join(rng.choice(WORDS, size=rng.integers(2, 30)))
            truth = ["a square", "a red square"] if task == "cap" else "red"
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": truth}]
            records.append({"id": f"{task}{place}", **image, "task": task, "conversations": turns})
        write(tmp_path / f"{task}_val-{count}.json", records)
    return tmp_path


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path
