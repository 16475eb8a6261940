"""Prompts and labels: equal to LLaVA-v1.5's, and answers only, for every template."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from llava.constants import IGNORE_INDEX
from llava.conversation import CHAT_TEMPLATE, conv_templates
from llava.data.errors import BadSampleError
from llava.data.template import TemplateEncoder, encode, encode_prompt
from tests.data import llava_oracle, world
from tests.data.world import llava_processor, qwen_processor, record
from tests.tiny import sentencepiece_file

PROCESSORS = {}
SLOW = {legacy: llava_oracle.SlowLlamaTokenizer(sentencepiece_file(), legacy) for legacy in (True, False)}


@pytest.fixture(scope="module", autouse=True)
def processors(tmp_path_factory):
    for legacy in (True, False):
        PROCESSORS[legacy] = llava_processor(tmp_path_factory.mktemp("tokenizer"), legacy)
    PROCESSORS["qwen"] = qwen_processor()


def turns(*texts):
    return record(*texts)["conversations"]


def as_llava(ids, processor):
    return [llava_oracle.IMAGE if token == processor.image_token_id else int(token) for token in ids]


def assert_equals_llava(texts, legacy, has_image):
    processor = PROCESSORS[legacy]
    ids, labels = encode(turns(*texts), "v1", processor)
    expected_ids, expected_labels, came_out = llava_oracle.vicuna(texts, SLOW[legacy], has_image)
    assert as_llava(ids, processor) == expected_ids
    if came_out:
        expected_labels = [IGNORE_INDEX if label == llava_oracle.IMAGE else label for label in expected_labels]
        assert labels.tolist() == expected_labels
    return came_out


CONVERSATIONS = [
    (["<image>\nWhat is on the table?", "A vase with flowers."], True),
    (["Which colour is it?\n<image>", "Red."], True),
    (["Look: <image> what now", "3 of 12 — ✓ 😀 dōmo", "Really?", "Yes, really.", "And\nthen?", "Nothing."], True),
    (["<image>", "[0.1, 0.25, 0.31, 0.9]"], True),
    (["Hi", "Hello!"], False),
    (["Write code", "```python\nprint(1)\n```\n", "again", "\nNo.", " ok ", "  two leading spaces", "z", "!"], False),
    (["Q1", "A1", "Q2", "A2", "Q3", "A3", "Q4", "A4"], False),
    (
        ["<image>\nMend it:\n    if x:\n        return  1", "def f():\n    return  1\n\n  # end.  Next", "  ok", " x "],
        True,
    ),
    (["<image>", "Yes.  It is."], True),
    (["USER: who is the ASSISTANT?", "ASSISTANT: it is me", "x", "USER:"], False),
]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("texts", "has_image"), CONVERSATIONS)
def test_vicuna_equals_llava(texts, has_image, legacy):
    assert assert_equals_llava(texts, legacy, has_image)


WORDS = st.text(st.sampled_from("abcU SE R.:,\n\t?é漢😀0<>'"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    image=st.booleans(),
    alone=st.booleans(),
    legacy=st.booleans(),
)
def test_vicuna_equals_llava_on_any_text(rounds, image, alone, legacy):
    texts = [text for pair in rounds for text in pair]
    if image:
        texts[0] = "<image>" if alone else texts[0] + "<image>"
    assert assert_equals_llava(texts, legacy, image)


def test_a_question_that_llava_cannot_count_keeps_its_labels():
    """LLaVA drops the sample; the answer still is exactly the target here."""
    texts = ["What follows ASSISTANT: there?", "Nothing."]
    assert not assert_equals_llava(texts, True, False)
    assert answers(turns(*texts), "v1", PROCESSORS[True]) == ["Nothing.</s>"]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("answer", ["a red bus", " leading", "   three", "a  b", "two\nlines", "é漢😀"])
def test_plain_equals_llava(answer, legacy):
    processor = PROCESSORS[legacy]
    ids, labels = encode(turns("<image>\nDescribe it briefly.", answer), "plain", processor)
    expected_ids, expected_labels = llava_oracle.plain(answer, SLOW[legacy])
    assert as_llava(ids, processor) == expected_ids
    assert labels.tolist() == expected_labels


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("texts", "has_image"), CONVERSATIONS)
def test_v0_trains_as_llava_does(texts, has_image, legacy):
    processor = PROCESSORS[legacy]
    ids, labels = encode(turns(*texts), "v0", processor)
    expected_ids, expected_labels = llava_oracle.v0(texts, SLOW[legacy], has_image)
    assert as_llava(ids, processor) == expected_ids
    assert labels.tolist() == expected_labels


def test_v0_targets_where_the_counts_come_out(tmp_path, monkeypatch):
    """With a vocabulary that has no "###" inside a text, as Llama's: answers, and the "###" before human turns."""
    model = ModelProto.FromString(sentencepiece_file().read_bytes())
    for piece in model.pieces:
        if "###" in piece.piece and piece.piece != "▁###":
            piece.piece = f"\ue000{piece.piece}"
    (tmp_path / "as_llama.model").write_bytes(model.SerializeToString())
    monkeypatch.setattr(world, "sentencepiece_file", lambda: tmp_path / "as_llama.model")
    processor = llava_processor(tmp_path / "tokenizer")
    ids, labels = encode(turns("<image>\nHi", "Yes.", "Sure?", "No."), "v0", processor)
    decode = processor.tokenizer.decode
    asked, asked_on = "### Human: <image> \nHi\n### Assistant: Yes.\n", "### Human: Sure?\n### Assistant: No.\n"
    assert decode(ids) == f"<s> {SYSTEMS['human']}\n\n{asked}{asked_on}### "
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(labels != IGNORE_INDEX)) + 1)
    targets = [decode(ids[run]) for run in runs if labels[run[0]] != IGNORE_INDEX]
    assert targets == ["###", "### Assistant: Yes.\n###", "### Assistant: No.\n### "]


def answers(messages, template, processor):
    """The target text, one string per run of targets."""
    ids, labels = encode(messages, template, processor)
    assert set(labels[labels != IGNORE_INDEX] - ids[labels != IGNORE_INDEX]) <= {0}
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(labels != IGNORE_INDEX)) + 1)
    texts = [processor.tokenizer.decode(ids[run]) for run in runs if labels[run[0]] != IGNORE_INDEX]
    return [text.strip(" ") for text in texts]


ENDS = {
    "v1": "</s>",
    "vicuna_v1": "</s>",
    "llava_v1": "</s>",
    "llava_llama_2": " </s>",
    "mistral_instruct": " </s>",
    "chatml_direct": "<|im_end|>",
}


@pytest.mark.parametrize("template", sorted(ENDS))
@pytest.mark.parametrize("legacy", [True, False])
def test_only_answers_are_targets(template, legacy):
    processor = PROCESSORS["qwen" if template == "chatml_direct" else legacy]  # whoever has <|im_end|>
    messages = turns("<image>\nWhat is it?", "A small cat.", "Sure?", "Yes.", "Why?", "Its\nwhiskers.")
    end = ENDS[template]
    expected = [f"A small cat.{end}", f"Yes.{end}", f"Its\nwhiskers.{end}"]
    assert answers(messages, template, processor) == expected


def test_chat_template_targets_and_text():
    processor = PROCESSORS["qwen"]
    messages = turns("<image>\nWhat is this?", "a red square", "this <image> too?\n<image>", " yes\n")
    ids, labels = encode(messages, CHAT_TEMPLATE, processor)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert processor.tokenizer.decode(ids) == (
        f"<|im_start|>user\n{image}What is this?<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>\n"
        f"<|im_start|>user\nthis {image} too?{image}<|im_end|>\n<|im_start|>assistant\n yes\n<|im_end|>\n"
    )
    whole = processor.tokenizer(processor.tokenizer.decode(ids), add_special_tokens=False).input_ids
    assert ids.tolist() == whole
    assert answers(messages, CHAT_TEMPLATE, processor) == ["a red square<|im_end|>", "yes\n<|im_end|>"]
    assert (labels == IGNORE_INDEX)[ids == processor.image_token_id].all()


BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_chat_template_writes_its_own_start_and_an_answer_is_kept_to_its_last_blank(monkeypatch):
    processor = PROCESSORS[True]  # its tokenizer puts a start mark before what it is given; this template has none
    monkeypatch.setattr(processor.tokenizer, "chat_template", BARE)
    messages = turns("What is this?", "red  ", "And this?", "blue")
    ids, labels = encode(messages, CHAT_TEMPLATE, processor)
    assert processor.tokenizer("a").input_ids[0] == processor.tokenizer.bos_token_id
    assert processor.tokenizer.bos_token_id not in ids
    targets = [processor.tokenizer.decode([token]) for token in ids[labels != IGNORE_INDEX]]
    assert targets == ["red", " ", "blue"]  # both blanks are one token


PROMPTS = {
    "v0": "{human}###Human: <image>\nWhat?###Assistant: A.###Human: Why?###Assistant:",
    "v1": "{user} USER: <image>\nWhat? ASSISTANT: A.</s>USER: Why? ASSISTANT:",
    "vicuna_v1": "{user} USER: <image>\nWhat? ASSISTANT: A.</s>USER: Why? ASSISTANT:",
    "llava_v1": "{human} USER: <image>\nWhat? ASSISTANT: A.</s>USER: Why? ASSISTANT:",
    "plain": "<image>\nWhat?A.\nWhy?",
    "llava_llama_2": "[INST] <<SYS>>\n{llama}\n<</SYS>>\n\n<image>\nWhat? [/INST] A. </s><s>[INST] Why? [/INST]",
    "mistral_instruct": "[INST] <image>\nWhat? [/INST] A. </s>[INST] Why? [/INST]",
    "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
    "<|im_start|>assistant\nA.<|im_end|><|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n",
}
SYSTEMS = {
    "user": llava_oracle.SYSTEM,
    "human": llava_oracle.SYSTEM.replace("user", "human"),
    "llama": "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language.",
}


@pytest.mark.parametrize("template", sorted(conv_templates))
def test_prompt_strings(template):
    conversation = conv_templates[template].copy()
    for number, text in enumerate(["<image>\nWhat?", "A.", "Why?", None]):
        conversation.append_message(conversation.roles[number % 2], text)
    assert conversation.get_prompt() == PROMPTS[template].format(**SYSTEMS)
    assert conv_templates[template].messages == []


MULTI_TURN = sorted(set(conv_templates) - {"plain", "v0"})  # LLaVA trains v0 on another text than it asks with


@pytest.mark.parametrize(
    ("template", "kind"),
    [(template, kind) for template in MULTI_TURN for kind in (True, False, "qwen")] + [(CHAT_TEMPLATE, "qwen")],
)
def test_generation_prompt_is_where_training_has_the_answer_begin(template, kind):
    processor = PROCESSORS[kind]
    messages = turns("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")
    ids, labels = encode(messages, template, processor)
    prompt = encode_prompt(messages[:3], template, processor)
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    begins = np.flatnonzero((labels[1:] != IGNORE_INDEX) & (labels[:-1] == IGNORE_INDEX)) + 1
    assert len(prompt) == begins[1]


def test_plain_generation_prompt_ends_at_the_image():
    processor = PROCESSORS[True]
    ids, _ = encode(turns("<image>\nx", "a bus"), "plain", processor)
    assert encode_prompt(turns("<image>\nx"), "plain", processor).tolist() == ids[:2].tolist()


def test_several_images_stay_in_their_places():
    processor = PROCESSORS[True]
    ids, _ = encode(turns("First <image> then <image> end", "ok"), "v1", processor)
    places = np.flatnonzero(ids == processor.image_token_id)
    between = processor.tokenizer.decode(ids[places[0] + 1 : places[1]])
    assert between.strip() == "then"


@pytest.mark.parametrize(
    ("messages", "template", "reason"),
    [
        (("no image", "x"), "plain", "template_mismatch"),
        (("<image>", "x", "more", "y"), "plain", "template_mismatch"),
    ],
)
def test_turns_that_a_template_cannot_express(messages, template, reason):
    with pytest.raises(BadSampleError) as caught:
        encode(turns(*messages), template, PROCESSORS[True])
    assert caught.value.reason == reason


def test_chat_template_that_rewrites_earlier_turns_is_refused():
    processor = qwen_processor()
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}{% if loop.last %}!{% endif %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(BadSampleError, match="rewrites earlier turns"):
        encode(turns("a", "b", "c", "d"), CHAT_TEMPLATE, processor)


def test_unknown_template_and_missing_chat_template():
    with pytest.raises(ValueError, match=r"unknown conversation template 'v2'; known: .*vicuna_v1"):
        TemplateEncoder("v2", PROCESSORS[True])
    with pytest.raises(ValueError, match="has none"):
        TemplateEncoder(CHAT_TEMPLATE, PROCESSORS[True])


@pytest.mark.parametrize("template", ["v1", "v0"])
def test_samples_of_a_batch_do_not_touch_each_other(template):
    """All conversations in one call, as LLaVA has each of them."""
    processor = PROCESSORS[True]
    oracle = llava_oracle.vicuna if template == "v1" else llava_oracle.v0
    encoded = TemplateEncoder(template, processor).encode([turns(*texts) for texts, _ in CONVERSATIONS])
    assert len(encoded) == len(CONVERSATIONS)
    for (texts, has_image), one in zip(CONVERSATIONS, encoded, strict=True):
        ids, labels, *_ = oracle(texts, SLOW[True], has_image)
        assert as_llava(one.input_ids, processor) == ids
        assert one.labels.tolist() == [IGNORE_INDEX if label == llava_oracle.IMAGE else label for label in labels]


def test_a_sample_that_cannot_be_expressed_leaves_the_others():
    samples = [turns("<image>", "a"), turns("<image>", "a", "b", "c"), turns("<image>", "d e")]
    first, bad, last = TemplateEncoder("plain", PROCESSORS[True]).encode(samples)
    assert isinstance(bad, BadSampleError)
    for one, messages in ((first, samples[0]), (last, samples[2])):
        alone = encode(messages, "plain", PROCESSORS[True])
        assert one.input_ids.tolist() == alone.input_ids.tolist()
        assert one.labels.tolist() == alone.labels.tolist()
