"""The loss of a record's own answer, against logits of the stock forward and cross-entropy, row by row."""

import json

import pytest
import torch
import torch.nn.functional as F

from eval.cli import evaluate
from eval.errors import EvaluationError
from inference_visatb import main
from llava.infer.engine import GenerationSettings, Generator
from llava.infer.prompts import PromptMaker
from tests.infer.conftest import mixed_requests, write
from tests.infer.test_run import command, read

TRUTH = "a red square, and a green one above it"


def stock_losses(model, processor, requests):
    """(Σ cross-entropy, tokens) of each request's truth: a row of its own, the logits of all of its positions."""
    maker = PromptMaker(processor)
    found = {}
    for request in requests:
        encoded = maker.encoder.encode([[*request.messages, {"from": "gpt", "value": TRUTH}]])[0]
        counts = iter(processor.num_image_tokens(image.height, image.width) for image in request.images)
        ids, labels = [], []
        for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True):
            times = next(counts) if token == processor.image_token_id else 1
            ids += [token] * times
            labels += [label] * times
        row = torch.tensor([ids])
        pixels = processor.pixel_inputs(request.images) if request.images else {}
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False, **processor.row_inputs(row), **pixels).logits[0]
        targets = torch.tensor(labels)[1:]
        kept = targets != -100
        real = 32000 if model.config.model_type == "llava" else logits.shape[-1]  # LLaVA's rows from there are padding
        total = F.cross_entropy(logits[:-1, :real][kept].double(), targets[kept], reduction="sum")
        found[request.id] = (float(total), int(kept.sum()))
    return found


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_losses_are_those_of_the_stock_model(load, family):
    model, processor = load(family)
    requests = mixed_requests(9)
    wanted = stock_losses(model, processor, requests)
    for batch_size in (1, 4):
        generator = Generator(model, processor, None, GenerationSettings(batch_size=batch_size))
        prompts = [generator.prompts.answered_prompt(request, TRUTH) for request in requests]
        losses = dict(pair for batch in generator.losses(prompts) for pair in batch)
        assert {key: count for key, (_, count) in losses.items()} == {key: count for key, (_, count) in wanted.items()}
        for key, (total, _) in losses.items():
            assert total == pytest.approx(wanted[key][0], rel=2e-5)


def test_command_writes_losses_and_the_metric_reads_them(checkpoints, world, capsys):
    words = command(checkpoints["llava"], world, "--truth-loss")
    assert main(words) == 0
    vqa, cap = sorted((world / "out").glob("*_tiny-llava.json"), reverse=True)
    before = vqa.read_text()
    vqa.unlink()
    assert main([*words, "--batch-size", "2", "--max_new_tokens", "9"]) == 0  # what only answers need does not count
    for now, then in zip(read(vqa), json.loads(before), strict=True):
        assert text(now) == pytest.approx(text(then))
    assert main(command(checkpoints["llava"], world)) == 2  # answers are something else
    assert "truth_loss" in capsys.readouterr().err

    evaluation = evaluate(cap, ["loss"], task="cap", model="m", split="val")
    losses = [text(record) for record in read(cap)]
    [column] = evaluation.scored.columns
    assert not column.higher_is_better
    assert column.mean() == pytest.approx(sum(total for total, _ in losses) / sum(count for _, count in losses))


def text(record):
    _, total, _, count, _ = record["conversations"][1]["generative_value"].split()
    return float(total), int(count)


def test_a_record_without_an_answer_is_named_before_the_model_is_loaded(checkpoints, world, capsys):
    records = read(world / "vqa_val-7.json")
    del records[3]["conversations"][1]["value"]
    write(world / "vqa_val-7.json", records)
    assert main(command(checkpoints["llava"], world, "--truth-loss")) == 2
    assert "vqa3" in capsys.readouterr().err


def test_answers_are_no_losses(world):
    records = read(world / "vqa_val-7.json")
    for record in records:
        record["conversations"][1]["generative_value"] = "red"
    with pytest.raises(EvaluationError, match=r"vqa0.*--truth-loss"):
        evaluate(write(world / "vqa_val-7_m.json", records), ["loss"])
