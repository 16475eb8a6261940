"""The engine against a plain greedy loop: full forwards of one unpadded row, no cache, nothing of ours but the ids."""

import numpy as np
import pytest
import torch
from PIL import Image

from llava.data.errors import DataError
from llava.infer.engine import GenerationSettings, Generator, RequestError, until
from llava.infer.prompts import PromptMaker, Request, image_inputs
from tests.infer.conftest import mixed_requests, noise

NEW = 12
FAMILIES = ["llava", "qwen2_vl", "qwen2_5_vl"]


def answers(model, processor, requests, template=None, **settings):
    generator = Generator(model, processor, template, GenerationSettings(**{"max_new_tokens": NEW, **settings}))
    return dict(generator.generate(requests))


def plain_greedy(model, processor, request, real_tokens, end):
    """The answer by argmax over full forwards of one row."""
    maker = PromptMaker(processor)
    ids = []
    counts = iter(processor.num_image_tokens(image.height, image.width) for image in request.images)
    for token in maker.encoder.encode_prompt(request.messages).tolist():
        ids += [token] * (next(counts) if token == processor.image_token_id else 1)
    pixels = processor.pixel_inputs(request.images) if request.images else {}
    written = []
    for _ in range(NEW):
        row = torch.tensor([ids + written])
        with torch.no_grad():
            logits = model(input_ids=row, use_cache=False, **processor.row_inputs(row), **pixels).logits
        logits[..., [*range(real_tokens, logits.shape[-1]), processor.image_token_id]] = -torch.inf
        token = int(logits[0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return processor.tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_are_those_of_a_plain_loop(load, family):
    model, processor = load(family)
    requests = mixed_requests()
    real = 32000 if family == "llava" else len(processor.tokenizer)
    end = processor.tokenizer.eos_token_id
    wanted = {request.id: plain_greedy(model, processor, request, real, end) for request in requests}
    assert len(set(wanted.values())) > 10
    assert answers(model, processor, requests) == wanted
    assert answers(model, processor, requests, batch_size=5) == wanted
    assert answers(model, processor, requests, batch_size=1) == wanted


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_text_after_images_and_images_after_text(load, family):
    model, processor = load(family)
    requests = mixed_requests()
    text = [request for request in requests if not request.images]
    shown = [request for request in requests if request.images]
    together = answers(model, processor, requests, batch_size=1)
    for group in (shown, text, shown):
        assert answers(model, processor, group) == {request.id: together[request.id] for request in group}


def test_rows_beyond_the_text_vocabulary_are_never_written(load):
    model, processor = load("llava")
    requests = mixed_requests(6)
    wanted = answers(model, processor, requests)

    def favour(_, __, logits):
        logits[..., 32000:] += 1e4
        return logits

    model.lm_head.register_forward_hook(favour)
    assert answers(model, processor, requests) == wanted
    beams = answers(model, processor, requests, num_beams=2)
    assert all("<image>" not in answer and answer for answer in beams.values())


def test_what_the_checkpoint_says_of_sampling_is_put_aside(load):
    model, processor = load("qwen2_vl")
    requests = mixed_requests(6)
    wanted = answers(model, processor, requests)
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1}
    model.generation_config.update(**settings)
    assert answers(model, processor, requests) == wanted


def test_sampling_follows_its_seed(load):
    model, processor = load("qwen2_vl")
    requests = mixed_requests(6)
    first = answers(model, processor, requests, temperature=2.0, seed=1)
    assert first == answers(model, processor, requests, temperature=2.0, seed=1)
    assert first != answers(model, processor, requests, temperature=2.0, seed=2)
    assert first != answers(model, processor, requests)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("can't allocate memory: you tried")])
def test_a_batch_that_does_not_fit_is_halved(load, monkeypatch, error):
    model, processor = load("llava")
    requests = mixed_requests()
    wanted = answers(model, processor, requests)
    generate, rows = model.generate, []

    def cramped(**inputs):
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > 4:
            raise error
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", cramped)
    assert answers(model, processor, requests, batch_size=10) == wanted
    assert rows == [10, 5, 2, 2, 2, 2, 2, 2, 2]


def test_other_errors_and_a_single_row_that_does_not_fit_are_raised(load, monkeypatch):
    model, processor = load("llava")

    def broken(**_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        answers(model, processor, mixed_requests(4))

    def full(**_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(model, "generate", full)
    with pytest.raises(torch.OutOfMemoryError):
        answers(model, processor, mixed_requests(4))


def script(model, tokens):
    """Make the model write `tokens`, whatever it is asked; returns the count of its steps."""
    steps = []

    def force(_, __, logits):
        forced = torch.full_like(logits, -100.0)
        forced[..., tokens[min(len(steps), len(tokens) - 1)]] = 100.0
        steps.append(1)
        return forced

    model.lm_head.register_forward_hook(force)
    return steps


@pytest.mark.parametrize(
    ("template", "text"), [("v1", "</s>"), ("v0", "###"), ("llava_llama_2", "</s>"), ("chatml_direct", "<|im_end|>")]
)
def test_an_answer_ends_at_its_templates_end_mark(load, template, text):
    model, processor = load("llava")
    tokenizer = processor.tokenizer
    written = tokenizer("Red, of course" + text + " Human: more", add_special_tokens=False).input_ids
    steps = script(model, written)
    asked = [Request("a", [{"from": "human", "value": "what?"}])]
    assert answers(model, processor, asked, template, max_new_tokens=40) == {"a": "Red, of course"}
    assert len(steps) < len(written)
    steps.clear()
    generator = Generator(model, processor, template, GenerationSettings(max_new_tokens=40))
    assert "".join(generator.stream(asked[0])).strip() == "Red, of course"


def test_a_row_that_ends_early_does_not_disturb_the_others(load):
    model, processor = load("qwen2_vl")
    requests = mixed_requests(8)
    longest = answers(model, processor, requests, batch_size=1, max_new_tokens=30)
    end = processor.tokenizer.eos_token_id

    def end_some(_, __, logits):
        logits[..., end] += 1e4 * (logits.argmax(-1) % 7 == 0)
        return logits

    model.lm_head.register_forward_hook(end_some)
    single = answers(model, processor, requests, batch_size=1, max_new_tokens=30)
    assert single != longest
    assert len({len(answer) for answer in single.values()}) > 2
    assert answers(model, processor, requests, max_new_tokens=30) == single


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_streamed_answer_is_the_batched_one(load, family):
    model, processor = load(family)
    requests = mixed_requests(6)
    wanted = answers(model, processor, requests)
    generator = Generator(model, processor, settings=GenerationSettings(max_new_tokens=NEW))
    for request in requests:
        pieces = list(generator.stream(request))
        assert "".join(pieces).strip() == wanted[request.id]


def test_an_error_while_streaming_reaches_the_reader(load, monkeypatch):
    model, processor = load("qwen2_vl")
    generator = Generator(model, processor)

    def broken(**_):
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(generator.stream(mixed_requests(1)[0]))


@pytest.mark.parametrize(
    ("end", "pieces", "text"),
    [
        (None, ["a", "b"], "ab"),
        ("###", ["a", "#", "#b", "c##", "#d"], "a##bc"),
        ("###", ["a##"], "a##"),
        ("###", ["x### y", "z"], "x"),
        ("aab", ["a", "a", "a", "b", "c"], "a"),
    ],
)
def test_streaming_holds_back_what_may_be_the_end_mark(end, pieces, text):
    shown = list(until(end, pieces))
    assert "".join(shown) == text
    assert not any(end in piece for piece in shown if end)


def test_images_from_files_and_from_workers(load, tmp_path):
    model, processor = load("qwen2_vl")
    rng = np.random.default_rng(0)
    opened, files = [], []
    for number in range(5):
        image = noise(rng)
        image.save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is this"}]
        opened.append(Request(number, turns, [image]))
        files.append(Request(number, turns, [tmp_path / f"{number}.png"]))
    wanted = answers(model, processor, opened)
    assert len(set(wanted.values())) == 5
    assert answers(model, processor, files) == wanted
    assert answers(model, processor, files, num_workers=2, batch_size=2) == wanted


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_is_named(load, tmp_path, workers):
    model, processor = load("llava")
    noise(np.random.default_rng(0), 40, 40).save(tmp_path / "a.png")
    generator = Generator(model, processor, settings=GenerationSettings(max_new_tokens=2, num_workers=workers))
    request = Request("q7", [{"from": "human", "value": "<image>\nwhat"}], [tmp_path / "a.png"])
    prompt = generator.prompts.prompt(request)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"q7.*a\.png") as caught:
        list(generator.generate_batches([prompt]))
    assert "Traceback" not in str(caught.value)


def test_a_request_that_cannot_be_asked_is_named(load):
    model, processor = load("qwen2_vl")
    image = Image.new("RGB", (30, 30))
    for text, images, message in [
        ("<image> what", [], "1 image tokens in the prompt, 0 images"),
        ("what", [image], "0 image tokens in the prompt, 1 images"),
        ("<image> what", [Image.new("RGB", (1, 300))], "1 × 300|300 × 1"),
        ("word " * 3000, [], "2048"),
    ]:
        with pytest.raises(DataError, match=f"request q1: .*({message})"):
            answers(model, processor, [Request("q1", [{"from": "human", "value": text}], images)])


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"num_beams": 0}, {"batch_size": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 2}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match="must"):
        GenerationSettings(**bad)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_a_plain_forward(load, family):
    model, processor = load(family)
    requests = mixed_requests(6)
    generator = Generator(model, processor, None, GenerationSettings(max_new_tokens=1, batch_size=4))
    prompts = {request.id: generator.prompts.prompt(request) for request in requests}
    found = dict(pair for batch in generator.states(list(prompts.values())) for pair in batch)
    for request in requests:
        prompt = prompts[request.id]
        inputs = generator.prompts.batch([prompt], [image_inputs(processor, prompt)])
        with torch.no_grad():
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(found[request.id], hidden, rtol=1e-4, atol=1e-4)
