"""One question, and a chat in the terminal."""

import numpy as np
import pytest
import torch

from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import Request
from llava.model.load import load_model_and_processor
from llava.run_llava import chat, main, with_images
from tests.infer.conftest import noise


def test_images_come_first_unless_the_query_places_them():
    assert with_images("what?", 0) == "what?"
    assert with_images("what?", 2) == "<image>\n<image>\nwhat?"
    assert with_images("is <image> like <image-placeholder>?", 2) == "is <image> like <image>?"
    with pytest.raises(ValueError, match="1 <image>, but 2 images"):
        with_images("<image> what?", 2)


def test_one_question(checkpoints, tmp_path, capsys):
    images = [noise(np.random.default_rng(seed)) for seed in (0, 1)]
    files = [str(tmp_path / f"{number}.png") for number in (0, 1)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    words = ["--model-path", str(checkpoints["qwen2_vl"]), "--max_new_tokens", "8"]
    assert main([*words, "--image-file", *files, "--query", "what?"]) == 0
    model, processor = load_model_and_processor(checkpoints["qwen2_vl"], dtype=torch.float32)
    generator = Generator(model, processor, settings=GenerationSettings(max_new_tokens=8))
    asked = Request(0, [{"from": "human", "value": "<image>\n<image>\nwhat?"}], images)
    assert capsys.readouterr().out.strip() == dict(generator.generate([asked]))[0]


def test_a_chat_remembers_and_survives_an_error(capsys):
    heard = []

    def answer(turns):
        heard.append(list(turns))
        if "bad" in turns[-1]["value"]:
            raise ValueError("no such thing")
        yield from (" yes", f" {len(heard)} ")

    lines = iter(["first?", "bad", "second?", ""])
    chat(answer, 1, lambda: next(lines))
    said = capsys.readouterr()
    assert said.out == " yes 1 \n yes 3 \n"
    assert said.err == "error: no such thing\n"
    first = [{"from": "human", "value": "<image>\nfirst?"}, {"from": "gpt", "value": "yes 1"}]
    assert heard[2] == [*first, {"from": "human", "value": "second?"}]


def test_bad_input_shows_no_traceback(checkpoints, tmp_path, capsys):
    model = ["--model-path", str(checkpoints["qwen2_vl"])]
    for words, message in [
        ([*model, "--image-file", str(tmp_path / "no.png"), "--query", "what?"], "no.png"),
        ([*model, "--query", "<image>?"], "0 images"),
        (["--model-path", str(tmp_path / "none"), "--query", "what?"], "none"),
        ([*model, "--query", "what?", "--conv-mode", "v9"], "v9"),
    ]:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
