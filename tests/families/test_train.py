"""A model without a file of its own from data to answers, by the commands."""

import signal

import pytest
import torch
from PIL import Image

from llava.data.collator import Collator
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import Request
from llava.model.load import load_model_and_processor
from llava.train.train import main
from tests.families.checks import TASKS, World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World("qwen3_vl", tmp_path_factory.mktemp("world"))


def test_from_data_to_answers(world, tmp_path):
    """Trained packed, two steps; the finished folder answers, and its processor is the one that it was trained with."""
    assert len(world.samples) == 4  # writes data and images

    values = {
        "model_name_or_path": world.checkpoint,
        "data_path": world.folder / "data.json",
        "image_folder": world.folder / "images",
        "output_dir": tmp_path / "out",
        "index_cache_dir": tmp_path / "index",
        "task_names": " ".join(TASKS),
        "per_device_train_batch_size": 2,
        "packing": True,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "report_to": "none",
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main([word for name, value in values.items() for word in (f"--{name}", *str(value).split())]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    model, processor = load_model_and_processor(tmp_path / "out")
    before, _ = load_model_and_processor(world.checkpoint)
    old, new = before.state_dict(), model.state_dict()
    changed = {name.split(".")[1] for name in new if not torch.equal(new[name], old[name])}
    assert changed >= {"language_model", "visual"}  # the merger, Qwen's projector, lies in the tower
    assert all(torch.equal(new[name], old[name]) for name in new if ".visual.blocks." in name)
    requests = [Request("q", [{"from": "human", "value": "<image>\nWhat is this?"}], world.images({"image": "a.png"}))]
    [(_, answer)] = Generator(model, processor, settings=GenerationSettings(4)).generate(requests)
    assert isinstance(answer, str)
    sample = world.samples[0]
    again = processor.image_inputs(world.images({"image": "a.png"}))
    assert torch.equal(again.pixels["pixel_values"], sample["pixel_values"])


@pytest.mark.parametrize("name", ["qwen3_vl", "idefics3", "llava_onevision"])
def test_tokens_are_counted_without_pixels(name, tmp_path, monkeypatch):
    """As many as the processor makes of an image, told by its size alone."""
    processor = World(name, tmp_path).processor
    sizes = [(20, 333), (97, 41), (160, 160), (512, 70)]
    lengths = [len(processor.image_inputs([Image.new("RGB", (w, h))]).runs[0]) for h, w in sizes]
    assert len(set(lengths)) > 1
    monkeypatch.setattr(type(processor), "image_inputs", lambda *_: pytest.fail("pixels were processed"))
    assert [processor.num_image_tokens(*size) for size in sizes] == lengths


def test_text_alone_runs_the_tower(world):
    """A micro-batch of text has a blank image in a row without targets, so that every rank runs the tower."""
    model = world.model()
    batch = Collator(world.processor, 2048)([world.samples[1]])
    assert len(batch["input_ids"]) == 2
    assert (batch["labels"][1] == -100).all()
    seen = []
    model.get_submodule("model.visual").register_forward_hook(lambda *_: seen.append(True))
    batch.pop("vitw_task_ids")
    with torch.no_grad():
        model(**{n: v.double() if v.is_floating_point() else v for n, v in batch.items()})
    assert seen
