"""The base model that ships with the tiny experiment, and the recipe that makes it."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from eval.metrics import parse_box
from llava.data.template import encode
from llava.model.load import load_model_and_processor
from visatb.experiment.read import load_experiment
from visatb.prepare.nlvr_tasks import Thing
from visatb.prepare.scenes import Item
from visatb.prepare.tiny import TASKS, Tiny

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples" / "tiny" / "base"


@pytest.fixture(scope="module")
def recipe() -> object:
    """The recipe's modules, which lie beside their script as scripts do."""
    sys.path.insert(0, str(ROOT / "examples" / "tiny"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "examples" / "tiny"))


@pytest.fixture(scope="module")
def base() -> tuple:
    return load_model_and_processor(BASE, dtype=torch.float32)


def test_small_and_of_the_llava_family(base: tuple) -> None:
    model, processor = base
    assert model.config.model_type == "llava"
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.7e6
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 1.5e6
    assert processor.num_image_tokens(48, 48) == 36
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    assert processor.pixel_inputs([picture])["pixel_values"].shape == (1, 3, 48, 48)


def test_every_word_is_known_and_comes_back(base: tuple) -> None:
    _, processor = base
    tokenizer, rng = processor.tokenizer, Random(0)
    for name, task in TASKS.items():
        for _ in range(300):
            question, answer = task.ask(task.draw(rng), rng)
            ids = tokenizer(f"{question} {answer}").input_ids
            assert tokenizer.unk_token_id not in ids, (question, answer)
            assert tokenizer.decode(tokenizer(answer).input_ids, skip_special_tokens=True) == answer
        if name == "ground":
            assert parse_box(answer)


def test_labels_are_the_answer_and_its_end(base: tuple) -> None:
    _, processor = base
    turns = [{"from": "human", "value": "<image>\nWhat shape is red?"}, {"from": "gpt", "value": "circle"}]
    encoded = encode(turns, processor.default_template, processor)
    words = processor.tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.labels != -100].tolist())
    assert words == ["circle", "</s>"]
    assert len(encoded.input_ids) < 15, "no system text: most of a sample's tokens are its picture's"


def test_experiment_file_names_what_is_made(tmp_path: Path) -> None:
    experiment = load_experiment(ROOT / "examples" / "tiny.yaml")
    assert Path(experiment.model.path) == BASE
    made = Tiny()
    made.write(Namespace(seed=0, scale=1.0), tmp_path)
    names = {file.name for file in tmp_path.glob("*.json")}
    for task in experiment.tasks.values():
        assert {Path(file).name for file in [*task.train, task.val, task.test]} <= names


def test_patch_labels_of_a_hand_made_scene(recipe: object) -> None:
    world = recipe("world")
    labels = world.patch_labels([Item("square", "blue", 2, 4, 4, 4), Item("bar", "red", 9, 0, 2, 3)])
    grid = labels.reshape(6, 6, -1)
    square = [2, 2, 2, 4, 6, 8]  # shape 1 + 1, colour 2, x1 y1 x2 y2
    assert all(grid[row, column].tolist() == square for row in (2, 3) for column in (1, 2))
    bar = [4, 0, 9, 0, 11, 3]
    assert all(grid[row, column].tolist() == bar for row in (0, 1) for column in (4, 5))
    assert (grid[..., 0] > 0).sum() == 8


def test_patch_labels_of_a_hand_made_nlvr_scene(recipe: object) -> None:
    world = recipe("nlvr_world")
    labels = world.patch_labels([Thing(1, "square", "yellow", 40, 80, 20)])  # second box: 120 to the right
    grid = labels.reshape(11, 11, -1)
    assert grid[4, 8].tolist() == [1, 0, 1, 73, 36, 82, 45]
    assert (grid[..., 0] > 0).sum() == 1


def test_alt_text_mentions_only_what_is_there(recipe: object) -> None:
    world, rng = recipe("world"), Random(1)
    items, _ = world.picture(rng)
    colours = {item.colour for item in items}
    for _ in range(100):
        said = set(world.alt_text(items, rng).split()) & set(world.COLOURS)
        assert said <= colours


@pytest.mark.parametrize("name", ["tiny", "nlvr"])
def test_recipe_makes_a_checkpoint(recipe: object, tmp_path: Path, name: str) -> None:
    make_base = recipe("make_base")
    texts = tmp_path / "task.json"
    texts.write_text(json.dumps([{"conversations": [{"value": "<image>\nA zebra?"}, {"value": "true"}]}]))
    settings = Namespace(output=tmp_path / "base", tower_steps=2, language_steps=2, batch=2, seed=0, texts=[texts])
    make_base.make(importlib.import_module(make_base.WORLDS[name]), settings)
    model, processor = load_model_and_processor(tmp_path / "base", dtype=torch.float32)
    assert model.dtype == torch.float32
    assert processor.tokenizer.unk_token_id not in processor.tokenizer("zebra").input_ids
    assert processor.tokenizer.unk_token_id in processor.tokenizer("giraffe").input_ids
